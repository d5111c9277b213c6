"""Let a calibration run on a model and leave the model exactly as it was."""

import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from fimlora.model.modes import set_mode
from fimlora.model.pass_state import PassState


@contextmanager
def preserved(model: nn.Module, *, train_mode: bool, seed: int) -> Iterator[PassState]:
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
        The state that passes are to begin from. It is put back, as are flags, modes and all three
        random states, when the block ends, also when it raises.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    tensors = itertools.chain(model.parameters(), model.buffers())
    devices = sorted({t.device.index for t in tensors if t.device.type == "cuda"})
    state = PassState(model)
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices), torch.enable_grad():
            _seed(seed, devices)
            set_mode(model, train_mode=train_mode)
            for parameter, _ in flags:
                parameter.requires_grad = False
            yield state
    finally:
        state.set()
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
