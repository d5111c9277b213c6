"""Let a calibration run on a model and leave the model exactly as it was."""

import itertools
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def preserved(model: nn.Module, *, train_mode: bool, seed: int) -> Iterator[None]:
    """Freeze every parameter inside the block; the model is preserved as it was.

    Inside, no parameter requires grad, so a backward pass computes gradients of activations
    only and leaves every ``.grad`` alone. Torch's random state is seeded, so a loader or
    dropout without a generator of its own draws the same numbers in every calibration. Those
    of Python and numpy, which a loader may draw from too, go on from where they are.

    Args:
        model: The model.
        train_mode: Run it in training mode, with dropout.
        seed: Seed of the random state inside the block.

    Yields:
        None. Flags, modes and all three random states are restored when the block ends, also when it
        raises.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    tensors = itertools.chain(model.parameters(), model.buffers())
    devices = sorted({t.device.index for t in tensors if t.device.type == "cuda"})
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices), torch.enable_grad():
            _seed(seed, devices)
            model.train(train_mode)
            for parameter, _ in flags:
                parameter.requires_grad = False
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for parameter, required in flags:
            parameter.requires_grad = required
        for module, training in modes:
            module.training = training


def _seed(seed: int, devices: list[int]) -> None:
    """Seed the forked generators, and no others."""
    torch.default_generator.manual_seed(seed)
    for device in devices:
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def random_states(*devices: torch.device) -> dict[str, Tensor]:
    """Note where torch's generators stand.

    Args:
        *devices: The devices whose generators count, besides the CPU's.

    Returns:
        Their states by the name of the device.
    """
    states = {"cpu": torch.get_rng_state()}
    for device in devices:
        if device.type == "cuda":
            states[str(device)] = torch.cuda.get_rng_state(device)
    return states


def restore_random_states(states: Mapping[str, Tensor]) -> None:
    """Let torch's generators draw again what they have drawn since.

    Args:
        states: What `random_states` gave.
    """
    for name, state in states.items():
        if name == "cpu":
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, name)
