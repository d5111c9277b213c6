"""A trained adapter in another layout: the same function, other ranks on paper.

Layout B has the rank of every module; layout C pads all to one rank with zeros. What is
AdaLoRA becomes plain LoRA. Matrices are copied, not computed, wherever the scale stays: then
the function is the same to the bit. Nothing here imports torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fimlora.adapter.config import LAYOUTS
from fimlora.adapter.folder import check_destination, new_folder
from fimlora.adapter.trained.read import Limits, TrainedAdapter, read_trained
from fimlora.adapter.trained.tensors import Floats
from fimlora.adapter.trained.update import spectra_of, unpadded_rank
from fimlora.adapter.trained.write import common_scale, write_trained
from fimlora.errors import InvalidOption
from fimlora.plan import Budget, RankPlan


@dataclass(frozen=True, slots=True)
class Conversion:
    """An adapter in another layout.

    Attributes:
        layout: The layout.
        width: The common rank of layout C.
        ranks: Rank per module name, without padding.
        error: Relative Frobenius norm of the change of all updates, as stored; 0 is none at all.
        bytes_before: Of the file of weights.
        bytes_after: Of the file of weights.
    """

    layout: str
    width: int | None
    ranks: Mapping[str, int]
    error: float
    bytes_before: int
    bytes_after: int

    @property
    def sentence(self) -> str:
        """What was done, in a sentence."""
        form = f"layout {self.layout}" + (
            f", padded to rank {self.width}" if self.width else ""
        )
        same = (
            "its function is the same to the bit"
            if not self.error
            else f"its function changed by {self.error:.2g} (relative Frobenius norm) by rounding"
        )
        return f"{len(self.ranks)} modules in {form}; {same}."

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "sentence": self.sentence,
            "layout": self.layout,
            "width": self.width,
            "ranks": dict(self.ranks),
            "error": self.error,
            "bytes_before": self.bytes_before,
            "bytes": self.bytes_after,
        }


def convert_adapter(
    folder: str | Path,
    output: str | Path,
    *,
    layout: str = "B",
    overwrite: bool = False,
    limits: Limits = Limits(),
    max_bytes: int | None = None,
) -> Conversion:
    """Write a trained adapter in another layout.

    Args:
        folder: The adapter's folder.
        output: Folder to create.
        layout: ``B`` for variable ranks, ``C`` for one padded rank.
        overwrite: Replace an adapter that is already there.
        limits: How large the adapter may be.
        max_bytes: How large the new file of weights may become.

    Returns:
        What was written.

    Raises:
        InvalidAdapter: The folder holds no sound adapter of plain LoRA.
        InvalidOption: An argument is outside what is allowed, or something is in the way.
    """  # noqa: DOC502 - the helpers raise
    output = Path(output)
    if layout not in LAYOUTS:
        raise InvalidOption(f"layout={layout!r}; allowed are {', '.join(LAYOUTS)}")
    check_destination(output, overwrite=overwrite)
    adapter = read_trained(folder, limits=limits)
    spectra = spectra_of(adapter)
    plan = _plan_as_is(adapter, spectra)
    with new_folder(output) as fresh:
        written = write_trained(
            adapter,
            fresh,
            plan=plan,
            changed={n for n, m in adapter.modules.items() if m.scale != plan.scale},
            factors=lambda name: _rescaled(adapter, name, plan.scale),
            layout=layout,
            norms={name: float(np.linalg.norm(sigma)) for name, sigma in spectra.items()},
            max_bytes=max_bytes,
        )
        return Conversion(
            layout=layout,
            width=max(m.rank for m in written.adapter.modules.values())
            if layout == "C"
            else None,
            ranks=plan.ranks,
            error=written.error,
            bytes_before=adapter.n_bytes,
            bytes_after=written.adapter.n_bytes,
        )


def _rescaled(adapter: TrainedAdapter, name: str, scale: int | float) -> tuple[Floats, Floats]:
    A, B = adapter.matrices(name)
    return A, B * (adapter.modules[name].scale / scale)


def _plan_as_is(adapter: TrainedAdapter, spectra: Mapping[str, Floats]) -> RankPlan:
    """The ranks that an adapter has, as a plan."""
    targets = tuple(module.target for module in adapter.modules.values())
    ranks = {name: unpadded_rank(*adapter.matrices(name)) for name in adapter.modules}
    spent = sum(target.cost * ranks[target.name] for target in targets)
    return RankPlan(
        modules=targets,
        ranks=ranks,
        scores={name: float(np.square(sigma).sum()) for name, sigma in spectra.items()},
        budget=Budget("parameters", spent),
        limit=spent,
        rule="given",
        r_min=min(ranks.values()),
        r_max=max(ranks.values()),
        scale=common_scale(adapter),
    )
