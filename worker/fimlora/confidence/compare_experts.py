"""A selection of experts beside random experts, as many in each layer and at the same budget.

Selected experts are worth something only where random ones do worse. Nothing is trained here: how
much of the tokens and of the Fisher information either selection has, how many experts both have,
and what their plans spend is told. Nothing here imports torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fimlora.errors import InvalidOption
from fimlora.methods.expert_choice import experts_by_layer, fisher_of_selected
from fimlora.plan import RankPlan
from fimlora.statistics import Statistics

# Statistics with some experts selected, and the plan of each method for them.
Selection = tuple[Statistics, Mapping[str, RankPlan]]
_DIGITS = 6


@dataclass(frozen=True, slots=True)
class ComparedExperts:
    """One selection of experts.

    Attributes:
        facts: How it was made: ``select``, ``share`` or ``coverage``, ``seed``; ``experts`` there
            are, ``selected`` ones, and the share of the ``tokens`` that these see, if known.
        fisher: Share of the experts' Fisher information that the selected ones have, if measured.
        shared: How many of them the selection that was asked for has as well.
        layers: The selected experts, by where those of a layer are.
        plans: The plan of each method for them.
    """

    facts: Mapping[str, Any]
    fisher: float | None
    shared: int
    layers: Mapping[str, tuple[str, ...]]
    plans: Mapping[str, RankPlan]


def compared_experts(
    statistics: Statistics,
    selections: Mapping[str, Selection],
) -> tuple[ComparedExperts, ...]:
    """Put selections of experts side by side.

    Args:
        statistics: What was measured of all experts.
        selections: By name, what `fimlora.select_experts` made of them and the plans of each
            method; the one that was asked for first.

    Returns:
        A row each.
    """
    by_layer = [experts_by_layer(some.modules) for some, _ in selections.values()]
    asked = {(place, expert) for place, names in by_layer[0].items() for expert in names}
    whole = _fisher(statistics)
    return tuple(
        ComparedExperts(
            facts=some.expert_selection or {},
            fisher=_share(_fisher(some), whole),
            shared=len(asked & {(place, e) for place, names in layers.items() for e in names}),
            layers=layers,
            plans=plans,
        )
        for (some, plans), layers in zip(selections.values(), by_layer, strict=True)
    )


def _fisher(statistics: Statistics) -> float | None:
    try:
        return fisher_of_selected(statistics)
    except InvalidOption:  # nothing was estimated
        return None


def _share(some: float | None, whole: float | None) -> float | None:
    return None if some is None or not whole else round(some / whole, _DIGITS)
