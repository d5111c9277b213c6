"""What a trained adapter uses of the ranks it was given.

Per module: how many directions its update has, how its energy (the squares of its singular
values) is spread over them, and how large it is. Nothing is written and no data is read;
whether a direction helps a task, singular values do not tell. Nothing here imports torch.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fimlora.adapter.trained.read import Limits, TrainedAdapter, read_trained
from fimlora.adapter.trained.tensors import Floats
from fimlora.adapter.trained.update import spectra_of, unpadded_rank
from fimlora.plan import RankPlan

SHARES = (0.9, 0.95, 0.99)
_LEAST = 1e-6  # of the largest singular value: below, what is stored in float32 is rounding


@dataclass(frozen=True, slots=True)
class Planned:
    """What an adapter was planned as.

    Attributes:
        ranks: Rank per module name; 0 is not targeted.
        scales: Effective scale per module name, of those that are.
    """

    ranks: Mapping[str, int]
    scales: Mapping[str, int | float]

    @classmethod
    def by(cls, plan: RankPlan) -> "Planned":
        """What a plan says."""
        targets = [name for name, rank in plan.ranks.items() if rank]
        return cls(plan.ranks, {name: plan.scale_of(name) for name in targets})


@dataclass(frozen=True, slots=True)
class ModuleUse:
    """What a module uses of its rank.

    Attributes:
        name: Its name in the base model.
        rank: Its rank, zeros that it is padded with included.
        planned: Its rank by the plan that was given; ``None`` without a plan, or where the
            plan does not have it.
        scale: Its effective scale.
        numerical_rank: Singular values above a millionth of the largest.
        effective_rank: The exponential of the entropy of its energy: r for r equal singular
            values, 1 for one that outshines all others, 0 for an update of zeros.
        rank_90: Fewest ranks that keep 90 % of its energy.
        rank_95: The same for 95 %.
        rank_99: The same for 99 %.
        norm: Frobenius norm of its update.
        largest: The largest singular value.
        parameters: Of its A and B.
    """

    name: str
    rank: int
    planned: int | None
    scale: float
    numerical_rank: int
    effective_rank: float
    rank_90: int
    rank_95: int
    rank_99: int
    norm: float
    largest: float
    parameters: int


@dataclass(frozen=True, slots=True)
class Audit:
    """What an adapter uses of its ranks.

    Attributes:
        modules: What each module uses.
        parameters: Of all A and B.
        unused: Share of these in ranks that no module needs for 99 % of its own energy.
        empty: Share of these in ranks beyond the numerical rank.
        deviations: Where the adapter is not what a plan says, in a sentence each.
    """

    modules: tuple[ModuleUse, ...]
    parameters: int
    unused: float
    empty: float
    deviations: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """What was found, in a sentence or two."""
        if not any(module.norm for module in self.modules):
            return "The adapter changes nothing: the update of every module is zero."
        full = sum(module.rank_99 == module.rank for module in self.modules)
        return (
            f"{self.unused:.0%} of {self.parameters} parameters lie in ranks that no module "
            f"needs for 99 % of the energy of its update; {full} of {len(self.modules)} modules "
            "need all of theirs. Singular values do not tell what a direction is worth to a task."
        )

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "sentence": self.sentence,
            "parameters": self.parameters,
            "unused": self.unused,
            "empty": self.empty,
            "deviations": list(self.deviations),
            "modules": [asdict(module) for module in self.modules],
        }


def audit_adapter(
    folder: str | Path,
    *,
    plan: RankPlan | Planned | None = None,
    limits: Limits = Limits(),
) -> Audit:
    """Hold what a trained adapter uses against the ranks it has.

    Args:
        folder: The adapter's folder.
        plan: What it was planned as: what `fimlora.load_plan` reads, or ranks and scales alone.
        limits: How large the adapter may be.

    Returns:
        What each module uses, and where the adapter is not as planned.

    Raises:
        InvalidAdapter: The folder holds no sound adapter of plain LoRA.
    """  # noqa: DOC502 - `read_trained` raises
    adapter = read_trained(folder, limits=limits)
    spectra = spectra_of(adapter)
    planned = Planned.by(plan) if isinstance(plan, RankPlan) else plan
    modules = tuple(_use(adapter, name, sigma, planned) for name, sigma in spectra.items())
    costs = {name: module.target.cost for name, module in adapter.modules.items()}
    parameters = adapter.parameters
    return Audit(
        modules=modules,
        parameters=parameters,
        unused=sum(costs[m.name] * (m.rank - m.rank_99) for m in modules) / parameters,
        empty=sum(costs[m.name] * (m.rank - m.numerical_rank) for m in modules) / parameters,
        deviations=tuple(_deviations(adapter, planned)) if planned else (),
    )


def effective_rank(sigma: Floats) -> float:
    """How many directions energy is spread over.

    Args:
        sigma: Singular values.

    Returns:
        The exponential of the entropy of their squares; 0 where all are zero.
    """
    largest = float(sigma.max(initial=0.0))
    if not largest:
        return 0.0
    energy = np.square(sigma / largest)
    share = energy[energy > 0] / energy.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def rank_for(sigma: Floats, share: float) -> int:
    """Fewest ranks that keep a share of the energy.

    Args:
        sigma: Singular values, falling.
        share: The share.

    Returns:
        The rank; 0 where all values are zero.
    """
    if not sigma.any():
        return 0
    kept = np.cumsum(np.square(sigma / sigma[0]))
    return min(int(np.searchsorted(kept, share * kept[-1] * (1 - 1e-15))) + 1, len(sigma))


def _use(
    adapter: TrainedAdapter, name: str, sigma: Floats, planned: Planned | None
) -> ModuleUse:
    module = adapter.modules[name]
    return ModuleUse(
        name=name,
        rank=module.rank,
        planned=planned.ranks.get(name) if planned else None,
        scale=module.scale,
        numerical_rank=int((sigma > _LEAST * sigma[0]).sum()),
        effective_rank=effective_rank(sigma),
        rank_90=rank_for(sigma, SHARES[0]),
        rank_95=rank_for(sigma, SHARES[1]),
        rank_99=rank_for(sigma, SHARES[2]),
        norm=float(np.linalg.norm(sigma)),
        largest=float(sigma[0]),
        parameters=module.rank * module.target.cost,
    )


def _deviations(adapter: TrainedAdapter, planned: Planned) -> list[str]:
    """Where modules, ranks and scales are others than planned."""
    ranks = {name: rank for name, rank in planned.ranks.items() if rank}
    said = [
        f"{name} is planned with rank {ranks[name]} and the adapter is not on it"
        for name in ranks.keys() - adapter.modules.keys()
    ]
    for name, module in adapter.modules.items():
        scale = planned.scales.get(name, module.scale)
        if name not in ranks:
            said.append(f"{name} has rank {module.rank} and is not in the plan")
        elif ranks[name] not in {module.rank, unpadded_rank(*adapter.matrices(name))}:
            said.append(f"{name} has rank {module.rank}, planned is {ranks[name]}")
        elif not math.isclose(module.scale, scale, rel_tol=1e-9):
            said.append(f"{name} has scale {module.scale:g}, planned is {scale:g}")
    return sorted(said)
