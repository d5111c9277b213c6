"""What a device has left and what was used of it at most."""

import resource

import torch

from fimlora.memory.device import free_bytes, peak_bytes


def test_this_machine_says_something_plausible():
    """Some is left, some was used, and the peak is not below what is resident now."""
    cpu = torch.device("cpu")
    held = torch.ones(2**20)

    assert free_bytes(cpu) > held.nbytes
    assert peak_bytes(cpu) > held.nbytes
    assert peak_bytes(cpu) == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
