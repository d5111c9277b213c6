"""Plans of several methods from the statistics of one run, side by side; nothing is trained.

Two plans are compared by three figures. Spearman's correlation of their scores and of their ranks
says whether both put modules in one order; the overlap, one minus the share that has to be moved
to turn one plan into the other, says how much of what they spend lies in the same place. None of
them says which plan is better. Nothing here imports torch.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from fimlora.allocation import allocate
from fimlora.allocation.distance import plans_apart
from fimlora.confidence.compare_experts import ComparedExperts, Selection, compared_experts
from fimlora.confidence.correlation import spearman
from fimlora.confidence.signal import no_room, signal_of
from fimlora.confidence.signal import obstacle as no_signal
from fimlora.errors import FimloraError, InvalidOption
from fimlora.methods.expert_choice import ExpertChoice, with_experts
from fimlora.methods.registry import CONTROLS, METHODS, find_method
from fimlora.methods.score import obstacle, score
from fimlora.plan import Budget, RankPlan
from fimlora.scores import Scores
from fimlora.statistics import Statistics

COMPARISON_FORMAT = "fimlora.comparison/1"
Values = Mapping[str, float]  # by module name
_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Likeness:
    """How alike the plans of two methods are.

    Attributes:
        a: One method.
        b: The other.
        score_correlation: Spearman's, of the scores; ``None`` where a method goes by no score
            or has the same for all modules.
        rank_correlation: Spearman's, of the ranks; ``None`` where a plan has one rank for all.
        overlap: Share of the ranks (of the parameters, at a budget in these) that lie in the
            same place.
    """

    a: str
    b: str
    score_correlation: float | None
    rank_correlation: float | None
    overlap: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Plans of several methods at one budget.

    Attributes:
        plans: The plan by method, in the order that was asked for.
        scores: What each method goes by, per module: its score, or the energy of its spectrum;
            nothing of a method that goes by no score.
        pairs: How alike each two of them are.
        left_out: Methods that these statistics cannot give, with the reason, if all were asked
            for.
        signals: How much of a plan follows from the task, by method, as far as it was measured.
        provenance: Facts about the measurement.
        experts: Where experts were selected, that selection, then random ones beside it.
    """

    plans: Mapping[str, RankPlan]
    scores: Mapping[str, Values]
    pairs: tuple[Likeness, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)
    signals: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    experts: tuple[ComparedExperts, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain data, in a fixed order: same comparison, same bytes."""
        first = next(iter(self.plans.values()))
        return {
            "format": COMPARISON_FORMAT,
            "budget": {**asdict(first.budget), "limit": first.limit},
            "methods": [self._row(method, plan) for method, plan in self.plans.items()],
            "pairs": [asdict(pair) for pair in self.pairs],
            "left_out": dict(self.left_out),
            "provenance": dict(self.provenance),
            "modules": [
                {
                    "name": module.name,
                    "layer": module.layer,
                    "kind": module.kind,
                    "d_in": module.d_in,
                    "d_out": module.d_out,
                    "scores": {m: by[module.name] for m, by in self.scores.items() if by},
                    "ranks": {m: plan.ranks[module.name] for m, plan in self.plans.items()},
                }
                for module in first.modules
            ],
            **({"experts": [self._selection(e) for e in self.experts]} if self.experts else {}),
        }

    def _selection(self, experts: ComparedExperts) -> dict[str, Any]:
        return {
            **experts.facts,
            "fisher": experts.fisher,
            "shared": experts.shared,
            "layers": {place: list(names) for place, names in experts.layers.items()},
            "methods": [
                {
                    "method": method,
                    "ranks": plan.spent.ranks,
                    "parameters": plan.spent.parameters,
                }
                for method, plan in experts.plans.items()
            ],
        }

    def _row(self, method: str, plan: RankPlan) -> dict[str, Any]:
        signal = self.signals.get(method)
        return {
            "method": method,
            "rule": plan.rule,
            "summary": METHODS[method].summary,
            "r_min": plan.r_min,
            "r_max": plan.r_max,
            **asdict(plan.spent),
            "signal": None if signal is None else dict(signal),
        }


def compare(
    statistics: Statistics,
    budget: int | float | Budget = 8,
    *,
    methods: Collection[str] | None = None,
    scale: int | float | None = None,
    aggregation: str = "mean",
    estimator: str | None = None,
    experts: Mapping[str, Any] | None = None,
    **options: Any,
) -> Comparison:
    """Plan by several methods from what one run has measured, and compare the plans.

    Args:
        statistics: What `fimlora.measure` returned; recorded with what the methods need, see
            `fimlora.methods.registry.records_needed`.
        budget: A mean rank, or a `Budget` in any unit; the same for all.
        methods: Their names, at least two; by default all that these statistics can give.
        scale: LoRA scale of every module; that of the statistics by default.
        aggregation: As for `fimlora.score`.
        estimator: As for `fimlora.score`.
        experts: Which experts of a mixture train: ``select`` and ``share`` or ``coverage``, as
            for `fimlora.select_experts`; as many random ones are shown beside them.
        **options: All else that `fimlora.allocate` takes; the same for all.

    Returns:
        The plans, and how alike each two of them are.

    Raises:
        InvalidOption: A method is unknown, or was named and the statistics lack what it needs;
            or there are fewer than two.
    """  # noqa: DOC502 - the helpers raise
    choice = ExpertChoice.of(experts, seed=options.get("seed", 0))
    every, statistics = statistics, with_experts(statistics, choice)
    wanted, left_out = _choose(statistics, methods)
    groups = options.get("groups", ())
    if not isinstance(groups, str):  # looked through once per method
        options["groups"] = [tuple(group) for group in groups]
    options["scale"] = statistics.scale if scale is None else scale
    taken_with = {"aggregation": aggregation, "estimator": estimator}
    taken = _scores(statistics, wanted, options["scale"], taken_with)
    plans, cannot = _plans(taken, budget, options, is_named=methods is not None)
    wanted, left_out = [name for name in wanted if name in plans], left_out | cannot
    values = {method: _values(taken[method]) for method in wanted}
    selections: dict[str, Selection] = {}
    if choice is not None:
        selections["asked"] = statistics, plans
    if choice is not None and choice.control is not None:
        random = with_experts(every, choice.control)
        taken = _scores(random, wanted, options["scale"], taken_with)
        selections["control"] = random, _plans(taken, budget, options, is_named=False)[0]
    return Comparison(
        plans,
        values,
        tuple(_likeness(a, b, plans, values) for a, b in combinations(wanted, 2)),
        left_out,
        _signals(statistics, plans, **taken_with),
        statistics.provenance(),
        compared_experts(every, selections) if selections else (),
    )


def _scores(
    statistics: Statistics,
    methods: Collection[str],
    scale: int | float,
    taken_with: Mapping[str, Any],
) -> dict[str, Scores]:
    return {method: score(statistics, method, scale=scale, **taken_with) for method in methods}


def _choose(
    statistics: Statistics, methods: Collection[str] | None
) -> tuple[list[str], dict[str, str]]:
    """Those to compare, and of all others why not."""
    names = list(METHODS if methods is None else dict.fromkeys(methods))
    for name in names:
        find_method(name)
    lacking = {name: reason for name in names if (reason := obstacle(statistics, name))}
    if lacking and methods is not None:
        raise InvalidOption(next(iter(lacking.values())))
    wanted = [name for name in names if name not in lacking]
    if len(wanted) < 2:
        raise InvalidOption(f"methods={names}: comparing takes at least two")
    return wanted, lacking


def _plans(
    taken: Mapping[str, Scores],
    budget: int | float | Budget,
    options: Mapping[str, Any],
    *,
    is_named: bool,
) -> tuple[dict[str, RankPlan], dict[str, str]]:
    """Plans by method, and why a method that nobody named has none: it may find no layers."""
    plans, cannot = {}, {}
    for method, scores in taken.items():
        is_by_layers = scores.rule == "layers"
        own = options if is_by_layers else {**options, "n_layers": None}
        try:
            plans[method] = allocate(scores, budget, **own)
        except FimloraError as error:
            if is_named or not is_by_layers:
                raise
            cannot[method] = f"method {method!r} has no plan: {error}"
    return plans, cannot


def _values(scores: Scores) -> Values:
    if scores.rule in {"uniform", "random"}:
        return {}
    if scores.rule == "spectral":
        return {name: float(np.square(s).sum()) for name, s in scores.spectra.items()}
    return scores.by_module


def _signals(
    statistics: Statistics,
    plans: Mapping[str, RankPlan],
    **taken_with: Any,
) -> dict[str, dict[str, Any]]:
    """Signal of each plan of which one can be stated."""
    return {
        method: signal_of(statistics, plan, **taken_with).to_json()
        for method, plan in plans.items()
        if plan.rule not in CONTROLS
        and no_signal(statistics, method, **taken_with) is None
        and no_room(plan) is None
    }


def _likeness(
    a: str, b: str, plans: Mapping[str, RankPlan], values: Mapping[str, Values]
) -> Likeness:
    names = [module.name for module in plans[a].modules]
    is_scored = values[a] and values[b]
    return Likeness(
        a,
        b,
        spearman(*([values[m][n] for n in names] for m in (a, b))) if is_scored else None,
        spearman(*([plans[m].ranks[n] for n in names] for m in (a, b))),
        round(1 - plans_apart(plans[a], plans[b]), _DIGITS),
    )
