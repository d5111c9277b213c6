"""Where a sweep stands on its way back, saved after each unit.

What the finished units gave is kept as it is. For the units that are left, forward is run
again up to the first finished one; what cannot be had again without the finished units are
the gradients that they have handed on, to outputs and inputs of units before them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fimlora.measuring.resume.progress_file import SavedSums
from fimlora.measuring.streamed.recompute import Tape
from fimlora.statistics.statistics import Groups

_FOUND, _GRADIENT = "found", "gradient"


@dataclass
class SweepProgress:
    """The way back, as far as it is done.

    Attributes:
        found: What was recorded in the finished units, the last unit first.
        n_done: Finished units.
        stop: The last of them that was finished; all units behind it are finished too.
        n_left: Units that are left.
        one_at_a_time: Whether examples run one at a time.
    """

    found: list[Groups] = field(default_factory=list)
    n_done: int = 0
    stop: str | None = None
    n_left: int = -1
    one_at_a_time: bool = False
    _gradients: dict[str, Tensor] = field(default_factory=dict)
    _layouts: dict[str, tuple[list[int], list[int]]] = field(default_factory=dict)

    @classmethod
    def load(cls, saved: SavedSums | None) -> "SweepProgress":
        """Read how far an earlier run was.

        Args:
            saved: The run's file, if it has one.

        Returns:
            That run's progress; one that stands at the beginning if there is none.
        """
        loaded = saved.load() if saved is not None else None
        if loaded is None:
            return cls()
        tensors, facts = loaded
        groups: Groups = {group: {} for group in facts["groups"]}
        for key in [key for key in tensors if key.startswith(f"{_FOUND}/")]:
            _, group, name = key.split("/", 2)
            groups[group][name] = tensors.pop(key).cpu().numpy()
        progress = cls([groups] if groups else [], **facts["progress"])
        progress._gradients, progress._layouts = tensors, facts["layouts"]
        return progress

    def finish(self, unit: str, groups: Groups | None, *, n_left: int) -> None:
        """Note that a unit is done.

        Args:
            unit: The unit.
            groups: What was recorded, if it has targets.
            n_left: Units that are left.
        """
        if groups is not None:
            self.found.append(groups)
        self.n_done, self.stop, self.n_left = self.n_done + 1, unit, n_left

    def state(self, tapes: Sequence[Tape]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Give what `load` and `restore` go on from.

        Args:
            tapes: The tapes of all passes, without the finished units.

        Returns:
            Tensors and facts to save.
        """
        found = {
            f"{_FOUND}/{group}/{name}": torch.from_numpy(np.array(values))
            for groups in self.found
            for group, by_module in groups.items()
            for name, values in by_module.items()
        }
        gradients = dict(_gradients_of(tapes))
        layouts = {
            key: (list(tensor.shape), list(tensor.stride()))
            for key, tensor in gradients.items()
            if not tensor.is_contiguous()
        }
        once = {key: _without_repeats(tensor) for key, tensor in gradients.items()}
        progress = {
            "n_done": self.n_done,
            "stop": self.stop,
            "n_left": self.n_left,
            "one_at_a_time": self.one_at_a_time,
        }
        groups = list(self.found[0]) if self.found else []
        return {**found, **once}, {"progress": progress, "groups": groups, "layouts": layouts}

    def restore(self, tapes: Sequence[Tape]) -> None:
        """Put the gradients back that the finished units have handed on.

        Args:
            tapes: Tapes that have gone forward up to `stop`.
        """
        for key, tensor in self._gradients.items():
            _, kind, *numbers = key.split("/")
            tape, step, position = map(int, numbers)
            gradient = _laid_out(tensor, self._layouts.get(key))
            found = tapes[tape].steps[step]
            if kind == "out":
                found.gradients[position] = gradient
            else:
                found.new[position].gradient = gradient
        self._gradients = {}


def _gradients_of(tapes: Sequence[Tape]) -> Iterator[tuple[str, Tensor]]:
    for t, tape in enumerate(tapes):
        for s, step in enumerate(tape.steps):
            for position, gradient in step.gradients.items():
                yield f"{_GRADIENT}/out/{t}/{s}/{position}", gradient
            for i, held in enumerate(step.new):
                if held.gradient is not None:
                    yield f"{_GRADIENT}/in/{t}/{s}/{i}", held.gradient


def _without_repeats(tensor: Tensor) -> Tensor:
    """Cut axes along which one value is repeated to that value."""
    for axis, stride in enumerate(tensor.stride()):
        if not stride and tensor.shape[axis] > 1:
            tensor = tensor.narrow(axis, 0, 1)
    return tensor


def _laid_out(tensor: Tensor, layout: tuple[list[int], list[int]] | None) -> Tensor:
    """Lay a tensor out as it was: kernels may take another path for another layout."""
    if layout is None:
        return tensor
    shape, strides = layout
    laid_out = torch.empty_strided(
        tensor.shape, strides, dtype=tensor.dtype, device=tensor.device
    )
    return laid_out.copy_(tensor).expand(shape)
