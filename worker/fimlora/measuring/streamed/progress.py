"""How far a layer-by-layer run is: reports its blocks, saves on the way back, and goes on.

What the finished blocks gave is kept as it is. For the blocks that are left, forward is run
again up to the first finished one; what cannot be had again without the finished blocks are
the gradients that they have handed on, to outputs and inputs of blocks before them.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fimlora.measuring.resume.progress_file import SavedSums
from fimlora.measuring.settings import OnBatch
from fimlora.measuring.streamed.recompute import BlockCalls, GradientKey
from fimlora.statistics.statistics import Groups

_FOUND, _GRADIENT = "found", "gradient"
# Attributes that are saved as they are.
_FACTS = ("n_done", "stop", "n_left", "one_at_a_time", "uncut")
# Going back through a block: it runs again, then backward, and is recorded.
_WORK_BACK = 3


class LayerwiseProgress:
    """Counts blocks and tells the caller; with a file, also saves after each on the way back.

    Args:
        n_batches: Calibration batches.
        n_blocks: Blocks of the model.
        saved: The run's file; ``None`` for a run that is not saved.
        on_batch: Called as `fimlora.Settings` says.
        goes_back: Whether the run goes back through the blocks, and records them then.

    Attributes:
        found: What was recorded in the finished blocks, the last block first.
        n_done: Finished blocks.
        stop: The last of them that was finished; all blocks behind it are finished too.
        n_left: Blocks that are left; below 0 while nobody knows.
        one_at_a_time: Whether examples run one at a time.
        uncut: From which batch on padding stays; ``None`` while it was read in none.
    """

    def __init__(
        self,
        n_batches: int,
        n_blocks: int,
        saved: SavedSums | None = None,
        on_batch: OnBatch | None = None,
        *,
        goes_back: bool = True,
    ) -> None:
        self._work_back = _WORK_BACK if goes_back else 0
        self.found: list[Groups] = []
        self.n_done = 0
        self.stop: str | None = None
        self.n_left = -1
        self.one_at_a_time = False
        self.uncut: int | None = None
        self._n_batches, self._n_blocks = n_batches, n_blocks
        self._saved, self._on_batch = saved, on_batch
        self._gradients: dict[str, Tensor] = {}
        self._layouts: dict[str, tuple[list[int], list[int]]] = {}

    def resume(self) -> None:
        """Go on from the file, if there is one.

        Raises:
            InvalidProgress: It is damaged, or comes from another run.
        """  # noqa: DOC502 - `SavedSums` raises
        loaded = self._saved.load() if self._saved is not None else None
        if loaded is None or self._saved is None:
            return
        tensors, facts = loaded
        groups: Groups = {group: {} for group in facts["groups"]}
        for key in [key for key in tensors if key.startswith(f"{_FOUND}/")]:
            _, group, name = key.split("/", 2)
            groups[group][name] = tensors.pop(key).cpu().numpy()
        self.found = [groups] if groups else []
        for name in _FACTS:
            setattr(self, name, facts["progress"][name])
        self._gradients, self._layouts = tensors, facts["layouts"]
        if self.n_done:
            self._saved.tell_resumed(self._share_done(), self._n_batches)

    def restore(self, passes: Sequence[BlockCalls]) -> None:
        """Put the gradients back that the finished blocks have handed on.

        Args:
            passes: The calls of all passes, which have gone forward up to `stop`.
        """
        by_pass: dict[int, dict[GradientKey, Tensor]] = defaultdict(dict)
        for key, tensor in self._gradients.items():
            _, kind, *numbers = key.split("/")
            number, flow, call, position = map(int, numbers)
            gradient = _laid_out(tensor, self._layouts.get(key))
            by_pass[number][flow, kind, call, position] = gradient
        for number, gradients in by_pass.items():
            passes[number].restore(gradients)
        self._gradients = {}

    def report_forward(self, n_blocks: int) -> None:
        """Tell the caller of a block that all batches have gone forward through.

        Args:
            n_blocks: The blocks so far.
        """
        self._report(self._share_of(n_blocks))

    def finish(
        self, block: str, groups: Groups | None, passes: Sequence[BlockCalls], *, n_left: int
    ) -> None:
        """Note a finished block; save, if it is time, and tell the caller.

        Args:
            block: The block.
            groups: What was recorded, if it has targets.
            passes: The calls of all passes, without the finished blocks.
            n_left: Blocks that are left.
        """
        if groups is not None:
            self.found.append(groups)
        self.n_done, self.stop, self.n_left = self.n_done + 1, block, n_left
        self._save_and_report(passes)

    def finish_forward(self, groups: Groups | None) -> None:
        """Note a finished block of a run that does not go back.

        Args:
            groups: What was recorded, if it has targets.
        """
        if groups is not None:
            self.found.append(groups)
        self.n_done += 1
        self._save_and_report(())

    def begin_anew(self) -> None:
        """Forget what blocks have given on the way forward."""
        if not self._work_back:
            self.found, self.n_done = [], 0

    def _save_and_report(self, passes: Sequence[BlockCalls]) -> None:
        if self._saved is not None and self._saved.is_due():
            self._saved.save_if_due(*self._state(passes))
        try:
            self._report(self._share_done())
        except BaseException:
            if self._saved is not None:
                self._saved.save_quietly(*self._state(passes))
            raise

    def report_end(self) -> None:
        """Tell the caller that all is done."""
        self._report(self._n_batches)

    def _report(self, n_done: int) -> None:
        if self._on_batch is not None:
            self._on_batch(n_done, self._n_batches)

    def _share_done(self) -> int:
        """How many batches the finished blocks are worth; with no way back, one each."""
        if not self._work_back:
            return self._share_of(self.n_done)
        return self._share_of(self._n_blocks + self._work_back * self.n_done)

    def _share_of(self, work: int) -> int:
        """Say how many batches so much work would have finished, if they ran in turn."""
        all_work = (1 + self._work_back) * self._n_blocks
        return min(self._n_batches - 1, self._n_batches * work // all_work)

    def _state(self, passes: Sequence[BlockCalls]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Give what `resume` and `restore` go on from: tensors and facts."""
        found = {
            f"{_FOUND}/{group}/{name}": torch.from_numpy(np.array(values))
            for groups in self.found
            for group, by_module in groups.items()
            for name, values in by_module.items()
        }
        gradients = {
            f"{_GRADIENT}/{kind}/{number}/{flow}/{call}/{position}": gradient
            for number, calls in enumerate(passes)
            for (flow, kind, call, position), gradient in calls.waiting().items()
        }
        layouts = {
            key: (list(tensor.shape), list(tensor.stride()))
            for key, tensor in gradients.items()
            if not tensor.is_contiguous()
        }
        once = {key: _without_repeats(tensor) for key, tensor in gradients.items()}
        progress = {name: getattr(self, name) for name in _FACTS}
        groups = list(self.found[0]) if self.found else []
        return {**found, **once}, {"progress": progress, "groups": groups, "layouts": layouts}


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
