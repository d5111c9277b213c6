"""A trained adapter cut to a budget, with the least change of its function.

The singular values of all updates ``s * B @ A`` are pooled and one threshold goes through them
(PARA, arXiv 2604.27796), set by the budget or by the energy that is to be kept. By the theorem
of Eckart, Young and Mirsky no adapter of these ranks is nearer to the trained one in the
Frobenius norm. No data is read, and nothing here imports torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fimlora.adapter.folder import check_destination, new_folder
from fimlora.adapter.initial.carried import TRUNCATED, carry_initial
from fimlora.adapter.trained.read import Limits, TrainedAdapter, read_trained
from fimlora.adapter.trained.tensors import Floats
from fimlora.adapter.trained.update import spectra_of, update_of
from fimlora.adapter.trained.write import (
    Written,
    common_scale,
    rescaling_sentence,
    with_whole_alphas,
    write_trained,
)
from fimlora.allocation.controls import check_spending, control_ranks
from fimlora.allocation.limits import budget_limit, explain
from fimlora.allocation.spectral import captured_energies, share_by_gain
from fimlora.allocation.units import Units, gather_units
from fimlora.errors import InfeasibleBudget, InvalidOption
from fimlora.plan import Budget, RankPlan

Spectra = Mapping[str, Floats]


@dataclass(frozen=True, slots=True)
class TruncatedModule:
    """What became of a module.

    Attributes:
        name: Its name in the base model.
        rank_before: Its rank.
        rank: Its new rank.
        error: Relative Frobenius norm of the change of its update, from its singular values.
    """

    name: str
    rank_before: int
    rank: int
    error: float


@dataclass(frozen=True, slots=True)
class Truncation:
    """An adapter that was cut.

    Attributes:
        plan: Its new ranks.
        modules: What became of each module.
        error: Relative Frobenius norm of the change of all updates, from singular values.
        error_written: The same as measured on the written file, with its rounding.
        error_uniform: The same where one rank for all spends the budget.
        parameters_before: Of all A and B.
        bytes_before: Of the file of weights.
        bytes_after: Of the file of weights.
        n_untouched: Modules that kept their rank, and their A and B as they were.
        energy_kept: Share of the sum of all squared singular values that is kept.
        energy_asked: The share that was asked for, which ``r_max`` may keep it from.
        rescaling: That its scale became another one, as a sentence; empty where it stayed.
    """

    plan: RankPlan
    modules: tuple[TruncatedModule, ...]
    error: float
    error_written: float
    error_uniform: float
    parameters_before: int
    bytes_before: int
    bytes_after: int
    n_untouched: int
    energy_kept: float
    energy_asked: int | float | None = None
    rescaling: str = ""

    @property
    def sentence(self) -> str:
        """What was done, in a sentence or two."""
        spent, n = self.plan.spent, len(self.modules)
        return (
            f"{n} modules now have {spent.ranks} ranks and {spent.parameters} of "
            f"{self.parameters_before} parameters. The function of the adapter changed by "
            f"{self.error_written:.2%} (relative Frobenius norm over all updates); one rank for "
            f"all at the same budget would change it by {self.error_uniform:.2%}. What that does "
            f"to a task was not measured.{self._shortfall}{self.rescaling}"
        )

    @property
    def _shortfall(self) -> str:
        """That less energy is kept than was asked for, and why."""
        if not self.energy_asked or self.energy_kept >= self.energy_asked * (1 - 1e-12):
            return ""
        return (
            f" Kept is {self.energy_kept:.4%} of the energy and not the {self.energy_asked:.4%} "
            f"asked for: r_max={self.plan.r_max} stands in the way."
        )

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data but for the plan, of which the ranks stand with the modules."""
        return {
            "sentence": self.sentence,
            "error": self.error,
            "error_written": self.error_written,
            "error_uniform": self.error_uniform,
            "ranks": self.plan.spent.ranks,
            "parameters_before": self.parameters_before,
            "parameters": self.plan.spent.parameters,
            "bytes_before": self.bytes_before,
            "bytes": self.bytes_after,
            "n_untouched": self.n_untouched,
            "energy_kept": self.energy_kept,
            "energy_asked": self.energy_asked,
            "scale": self.plan.scale,
            "modules": [
                {
                    "name": module.name,
                    "rank_before": module.rank_before,
                    "rank": module.rank,
                    "error": module.error,
                }
                for module in self.modules
            ],
        }


def truncate_adapter(
    folder: str | Path,
    output: str | Path,
    *,
    budget: int | float | Budget | None = None,
    energy: int | float | None = None,
    r_min: int = 1,
    r_max: int | None = None,
    multiple_of: int = 1,
    layout: str = "B",
    overwrite: bool = False,
    limits: Limits = Limits(),
    max_bytes: int | None = None,
) -> Truncation:
    """Cut a trained adapter to a budget and write it as one that stock PEFT loads.

    Args:
        folder: The adapter's folder.
        output: Folder to create.
        budget: A mean rank, or a `Budget` in ranks, parameters or bytes. A mean rank is met
            exactly, any other as closely as whole ranks allow without exceeding it.
        energy: In place of a budget, the share of the sum of all squared singular values that
            is kept at least, unless ``r_max`` stands in the way, which the report then says.
        r_min: Lowest rank; a module of a lower one keeps its own. 0 lets modules go.
        r_max: Highest rank.
        multiple_of: Every rank is a multiple of this, with a budget.
        layout: ``B`` for variable ranks, ``C`` for one padded rank.
        overwrite: Replace an adapter that is already there.
        limits: How large the adapter may be.
        max_bytes: How large the new file of weights may become.

    Returns:
        What was written, and how far its function is from the trained one.

    Raises:
        InvalidAdapter: The folder holds no sound adapter of plain LoRA.
        InfeasibleBudget: No ranks within the bounds meet the budget.
        InvalidOption: An argument is outside what is allowed.
    """  # noqa: DOC502 - the helpers raise
    output = Path(output)
    _check_options(budget, energy, r_min, r_max, multiple_of)
    check_destination(output, overwrite=overwrite)
    adapter = read_trained(folder, limits=limits)
    spectra = spectra_of(adapter)
    plan = _plan(adapter, spectra, budget, energy, (r_min, r_max), multiple_of)
    plan = with_whole_alphas(carry_initial(plan, Path(folder)), layout=layout)
    with new_folder(output) as fresh:
        written = write_trained(
            adapter,
            fresh,
            plan=plan,
            changed=_changed(adapter, plan),
            factors=lambda name: update_of(adapter, name).factors(
                plan.ranks[name], scale=plan.scale
            ),
            layout=layout,
            norms={name: float(np.linalg.norm(sigma)) for name, sigma in spectra.items()},
            max_bytes=max_bytes,
        )
        return _report(adapter, spectra, plan, written, energy)


def error_at(spectra: Spectra, ranks: Mapping[str, int]) -> float:
    """Relative Frobenius norm of what ranks leave out of all updates.

    Args:
        spectra: Singular values per module name, falling.
        ranks: Rank per module name.

    Returns:
        The norm of the values beyond the ranks over that of all; 0 where all are zero.
    """
    left = np.concatenate([sigma[ranks[name] :] for name, sigma in spectra.items()])
    whole = np.linalg.norm(np.concatenate([*spectra.values()]))
    return float(np.linalg.norm(left) / whole) if whole else 0.0


def energy_at(spectra: Spectra, ranks: Mapping[str, int]) -> float:
    """Share of the energy of all updates that ranks keep.

    Args:
        spectra: Singular values per module name, falling.
        ranks: Rank per module name.

    Returns:
        The sum of their squares over that of all; 1 where all are zero.
    """
    top = max(float(sigma.max(initial=0.0)) for sigma in spectra.values())
    if not top:
        return 1.0
    whole, kept = (
        sum(float(np.square(sigma[:stop] / top).sum()) for sigma, stop in pairs)
        for pairs in (
            [(sigma, len(sigma)) for sigma in spectra.values()],
            [(sigma, ranks[name]) for name, sigma in spectra.items()],
        )
    )
    return kept / whole


def ranks_by_energy(spectra: Spectra, energy: int | float, *, r_min: int = 0) -> dict[str, int]:
    """Find the threshold that keeps a share of the energy, and count what is not below it.

    Args:
        spectra: Singular values per module name.
        energy: The share of the sum of all squares, above 0 and at most 1.
        r_min: Ranks that a module keeps at least, if it has them.

    Returns:
        Rank per module name.
    """
    pooled = np.sort(np.concatenate([*spectra.values()]))[::-1]
    kept = np.cumsum(np.square(pooled / (pooled[0] or 1.0)))
    place = min(int(np.searchsorted(kept, energy * kept[-1] * (1 - 1e-15))), len(pooled) - 1)
    threshold = max(float(pooled[place]), np.finfo(np.float64).tiny)
    return {
        name: max(int((sigma >= threshold).sum()), min(r_min, len(sigma)))
        for name, sigma in spectra.items()
    }


def _plan(
    adapter: TrainedAdapter,
    spectra: Spectra,
    budget: int | float | Budget | None,
    energy: int | float | None,
    bounds: tuple[int, int | None],
    multiple_of: int,
) -> RankPlan:
    """Ranks by one threshold, and the controls that spend as much."""
    targets = tuple(module.target for module in adapter.modules.values())
    r_min, r_max = bounds[0], bounds[1] or max(m.rank for m in adapter.modules.values())
    if energy is not None:
        ranks = ranks_by_energy(spectra, energy, r_min=r_min)
        ranks = {name: min(rank, r_max) for name, rank in ranks.items()}
        given = Budget("parameters", sum(t.cost * ranks[t.name] for t in targets) or 1)
    else:
        ranks = {}
        given = budget if isinstance(budget, Budget) else Budget("rank", budget or 0)
    limit = budget_limit(given, targets)
    try:
        units = _units(adapter, (r_min, r_max), multiple_of, in_ranks=given.unit == "rank")
        ranks = ranks or share_by_gain(units, spectra, limit)
        controls = control_ranks(units, spectra, limit, seed=0)
        check_spending(units, limit, controls if energy else {"truncate": ranks, **controls})
    except InfeasibleBudget as error:
        said = explain(
            error, given, n_modules=len(targets), base_parameters=None, bounds=(r_min, r_max),
            given=bounds,
        )  # fmt: skip
        raise InfeasibleBudget(
            f"{said}. A truncation only takes ranks away", interval=error.interval
        ) from error
    return RankPlan(
        modules=targets,
        ranks=ranks,
        scores=captured_energies(spectra, ranks),
        budget=given,
        limit=limit,
        rule="spectral",
        r_min=r_min,
        r_max=r_max,
        scale=common_scale(adapter),
        controls=controls,
        provenance={TRUNCATED: {"energy": energy, "error": error_at(spectra, ranks)}},
        method="para",
    )


def _units(
    adapter: TrainedAdapter, bounds: tuple[int, int], multiple_of: int, *, in_ranks: bool
) -> Units:
    """What ranks are given to: no module more than it has."""
    highest = {name: min(bounds[1], m.rank) for name, m in adapter.modules.items()}
    costs = {name: module.target.cost for name, module in adapter.modules.items()}
    return gather_units(
        costs,
        lowest={name: min(bounds[0], most) for name, most in highest.items()},
        highest=highest,
        weights=None if in_ranks else costs,
        multiple_of=multiple_of,
    )


def _changed(adapter: TrainedAdapter, plan: RankPlan) -> set[str]:
    """Modules that lose ranks, or whose scale is not the common one."""
    return {
        name
        for name, module in adapter.modules.items()
        if plan.ranks[name] < module.rank or module.scale != plan.scale
    }


def _report(
    adapter: TrainedAdapter,
    spectra: Spectra,
    plan: RankPlan,
    written: Written,
    energy: int | float | None,
) -> Truncation:
    return Truncation(
        plan=plan,
        modules=tuple(
            TruncatedModule(
                name=name,
                rank_before=module.rank,
                rank=plan.ranks[name],
                error=error_at({name: spectra[name]}, plan.ranks),
            )
            for name, module in adapter.modules.items()
        ),
        error=error_at(spectra, plan.ranks),
        error_written=written.error,
        error_uniform=error_at(spectra, plan.controls["uniform"]),
        parameters_before=adapter.parameters,
        bytes_before=adapter.n_bytes,
        bytes_after=written.adapter.n_bytes,
        n_untouched=len(adapter.modules) - len(_changed(adapter, plan)),
        energy_kept=energy_at(spectra, plan.ranks),
        energy_asked=energy,
        rescaling=rescaling_sentence(adapter, plan),
    )


def _check_options(
    budget: object, energy: int | float | None, r_min: int, r_max: int | None, multiple_of: int
) -> None:
    """Refuse options that no adapter could go with.

    Raises:
        InvalidOption: One is outside what is allowed.
    """
    if (budget is None) == (energy is None):
        raise InvalidOption("give a budget or the energy to keep, one of both")
    if energy is not None and not 0 < energy <= 1:
        raise InvalidOption(f"energy={energy}; it must be above 0 and at most 1")
    if energy is not None and multiple_of != 1:
        raise InvalidOption(
            f"multiple_of={multiple_of} needs a budget; energy knows no multiples"
        )
    for name, value, least in (
        ("r_min", r_min, 0), ("r_max", r_max, 1), ("multiple_of", multiple_of, 1),
    ):  # fmt: skip
        if value is not None and (type(value) is not int or value < least):
            raise InvalidOption(f"{name}={value!r}: it must be an integer of at least {least}")
    if r_max is not None and r_min > r_max:
        raise InvalidOption(f"r_min={r_min} is above r_max={r_max}")
