"""Where torch's generators stand, and models that move them when they should not."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fimlora.errors import UnsupportedModule
from fimlora.model.pass_state import Change
from fimlora.model.targets import base_model_of


@contextmanager
def drawing_nothing(
    model: nn.Module, device: torch.device, changes: Callable[[], Sequence[Change]]
) -> Iterator[None]:
    """Refuse a model that draws random numbers in evaluation mode, inside the block.

    Its gradients would be other ones every time. Modules that a pass makes draw their weights
    before they are given those of the model.

    Args:
        model: The model that runs.
        device: Where.
        changes: Says what the pass has changed.

    Yields:
        None.

    Raises:
        UnsupportedModule: It has drawn some.
    """
    before = random_states(device)
    yield
    after = random_states(device)
    if all(torch.equal(before[name], after[name]) for name in before):
        return
    if not any(where == "_modules" for _, where, *_ in changes()):
        raise UnsupportedModule(
            f"{type(base_model_of(model)).__name__} draws random numbers in evaluation mode, "
            "so its gradients are other ones every time; it cannot be measured"
        )


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
