"""A trained adapter in another layout: the same function, other ranks on paper.

Layout B has the rank of every module; layout C pads all to one rank with zeros. What is
AdaLoRA becomes plain LoRA. Matrices are copied, not computed, wherever the scale stays: then
the function is the same to the bit. Nothing here imports torch.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fimlora.adapter.config import LAYOUTS
from fimlora.adapter.folder import check_destination, new_folder
from fimlora.adapter.initial.carried import carry_initial
from fimlora.adapter.trained.adalora import is_adalora, write_plain
from fimlora.adapter.trained.read import (
    WEIGHTS,
    Limits,
    TrainedAdapter,
    read_fields,
    read_trained,
)
from fimlora.adapter.trained.tensors import Floats
from fimlora.adapter.trained.update import spectra_of, unpadded_rank
from fimlora.adapter.trained.write import (
    common_scale,
    rescaling_sentence,
    with_whole_alphas,
    write_trained,
)
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
        left_out: Modules that have no LoRA any more, with the reason.
        is_adalora: Whether it was AdaLoRA, of which A and B were computed, in float32.
        rescaling: That its scale became another one, as a sentence; empty where it stayed.
    """

    layout: str
    width: int | None
    ranks: Mapping[str, int]
    error: float
    bytes_before: int
    bytes_after: int
    left_out: Mapping[str, str] = field(default_factory=dict)
    is_adalora: bool = False
    rescaling: str = ""

    @property
    def sentence(self) -> str:
        """What was done, in a sentence."""
        form = f"layout {self.layout}" + (
            f", padded to rank {self.width}" if self.width else ""
        )
        if self.is_adalora:
            left = f", {len(self.left_out)} kept no rank" if self.left_out else ""
            said = f"{len(self.ranks)} modules in {form}{left}; AdaLoRA's function in float32."
            return said + self.rescaling
        same = (
            "its function is the same to the bit"
            if not self.error
            else f"its function changed by {self.error:.2g} (relative Frobenius norm) by rounding"
        )
        return f"{len(self.ranks)} modules in {form}; {same}.{self.rescaling}"

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
            "left_out": dict(self.left_out),
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
    fields = read_fields(Path(folder), limits=limits)
    if not is_adalora(fields):
        adapter = read_trained(folder, limits=limits)
        return _convert(adapter, Path(folder), output, layout, max_bytes)
    with tempfile.TemporaryDirectory(prefix="fimlora-") as work:
        plain = write_plain(Path(folder), Path(work), fields, limits=limits)
        adapter = read_trained(work, limits=limits)
        found = _convert(adapter, Path(folder), output, layout, max_bytes)
    before = (Path(folder) / WEIGHTS).stat().st_size
    return replace(found, left_out=plain.left_out, bytes_before=before, is_adalora=True)


def _convert(
    adapter: TrainedAdapter, folder: Path, output: Path, layout: str, max_bytes: int | None
) -> Conversion:
    spectra = spectra_of(adapter)
    plan = carry_initial(_plan_as_is(adapter, spectra, layout), folder)
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
            rescaling=rescaling_sentence(adapter, plan),
        )


def _rescaled(adapter: TrainedAdapter, name: str, scale: int | float) -> tuple[Floats, Floats]:
    A, B = adapter.matrices(name)
    return A, B * (adapter.modules[name].scale / scale)


def _ranks_of(adapter: TrainedAdapter) -> dict[str, int]:
    """Ranks without padding, which only an adapter of one rank throughout can have."""
    ranks = {name: module.rank for name, module in adapter.modules.items()}
    if len(set(ranks.values())) > 1:
        return ranks
    return {name: unpadded_rank(*adapter.matrices(name)) for name in ranks}


def _plan_as_is(
    adapter: TrainedAdapter, spectra: Mapping[str, Floats], layout: str
) -> RankPlan:
    """The ranks that an adapter has, as a plan."""
    targets = tuple(module.target for module in adapter.modules.values())
    ranks = _ranks_of(adapter)
    spent = sum(target.cost * ranks[target.name] for target in targets)
    plan = RankPlan(
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
    return with_whole_alphas(plan, layout=layout)
