"""How far two results lie apart, and how far other rows alone would put them.

Pure arithmetic on two rank maps: whoever holds both, service or client, says the same.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from fimlora_contract.rank_maps import RankMap, RankMapModule
from fimlora_contract.rank_patterns import RankChange, RankDrift

# Rules that look at no score, so that no other rows move their plans.
CONTROLS = frozenset({"uniform", "random"})
# The number of ranks that move varies by about its root; so many roots are hardly exceeded.
_SURE = 2.0


def rank_changes(a: RankMap, b: RankMap) -> list[RankChange]:
    """Modules whose ranks or experts differ, the largest change of rank first, then by name."""
    before, after = _ranks(a), _ranks(b)
    experts = _other_experts(a, b)
    changes = [
        RankChange(
            name=name,
            rank_a=before.get(name, 0),
            rank_b=after.get(name, 0),
            change=after.get(name, 0) - before.get(name, 0),
            **experts.get(name, {}),
        )
        for name in before | after
    ]
    differing = (c for c in changes if c.change or c.name in experts)
    return sorted(differing, key=lambda c: (-abs(c.change), c.name))


def rank_drift(a: RankMap, b: RankMap) -> RankDrift:
    """How far two rank maps lie apart in sum, beside what noise would do."""
    changes = rank_changes(a, b)
    before, after = _shares_of_scores(a), _shares_of_scores(b)
    goes_by_scores = before is not None and after is not None
    return RankDrift(
        n_modules=len(_ranks(a) | _ranks(b)),
        n_changed=sum(change.change != 0 for change in changes),
        n_other_experts=sum(change.experts_a is not None for change in changes),
        ranks_a=a.spent["ranks"],
        ranks_b=b.spent["ranks"],
        parameters_a=a.spent["parameters"],
        parameters_b=b.spent["parameters"],
        moved=sum(abs(c.change) for c in changes),
        largest_change=max((abs(c.change) for c in changes), default=0),
        share_moved=_moved(_ranks(a), _ranks(b)),
        rank_noise=_of_both(_rank_noise, a, b),
        share_of_scores_moved=_moved(before or {}, after or {}) if goes_by_scores else None,
        score_noise=_of_both(_score_noise, a, b) if goes_by_scores else None,
        share_of_experts_moved=_share_of_experts_moved(a, b),
        remarks=_remarks(a, b),
    )


def _ranks(plan: RankMap) -> dict[str, int]:
    return {module.name: module.rank for module in plan.modules}


def _experts(plan: RankMap) -> dict[str, set[int]]:
    """Of every module of fused experts those that train."""
    return {
        module.name: _trained(module, module.n_experts)
        for module in plan.modules
        if module.n_experts and module.rank
    }


def _trained(module: RankMapModule, n_experts: int) -> set[int]:
    return set(range(n_experts) if module.experts is None else module.experts)


def _other_experts(a: RankMap, b: RankMap) -> dict[str, dict[str, Any]]:
    """Which experts train in either, where these are not the same ones."""
    before, after = _experts(a), _experts(b)
    return {
        name: {"experts_a": sorted(before[name]), "experts_b": sorted(after[name])}
        for name in before.keys() & after.keys()
        if before[name] != after[name]
    }


def _share_of_experts_moved(a: RankMap, b: RankMap) -> float | None:
    """As of ranks; ``None`` where neither selects experts."""
    if not (_selects(a) or _selects(b)):
        return None
    return _moved(*(dict.fromkeys(_training_experts(plan), 1.0) for plan in (a, b)))


def _selects(plan: RankMap) -> bool:
    """Whether some experts train and others do not: fused ones, or such as are modules."""
    named = any(module.experts is not None for module in plan.modules)
    return named or bool(plan.provenance.get("expert_selection"))


def _training_experts(plan: RankMap) -> set[tuple[str, int]]:
    """What trains of all experts: of fused ones by their number, others by their modules alone."""
    fused = {(name, expert) for name, some in _experts(plan).items() for expert in some}
    alone = {
        (module.name, 0)
        for module in plan.modules
        if module.rank and not module.n_experts and _is_of_expert(module.name)
    }
    return fused | alone


def _is_of_expert(name: str) -> bool:
    """Whether a module is inside one of several experts, by its name; shared ones always train."""
    parents = name.split(".")[:-1]
    return any("expert" in part and "shared" not in part for part in parents)


def _moved(a: Mapping[Any, float], b: Mapping[Any, float]) -> float:
    """What has to be moved to turn one into the other, over all that both have."""
    total = math.fsum([*a.values(), *b.values()])
    apart = math.fsum(abs(a.get(name, 0) - b.get(name, 0)) for name in a.keys() | b.keys())
    return min(1.0, apart / total) if total else 0.0


def _shares_of_scores(plan: RankMap) -> dict[str, float] | None:
    """Each score over their sum, as only ratios count; ``None`` where the plan goes by none."""
    largest = max((module.score for module in plan.modules), default=0.0)
    if plan.rule in CONTROLS or not 0 < largest < math.inf:
        return None
    # Over the largest first: sums of large scores are no numbers any more.
    scores = {module.name: module.score / largest for module in plan.modules}
    total = math.fsum(scores.values())
    return {name: score / total for name, score in scores.items()}


def _of_both(noise: Callable[[RankMap], float | None], a: RankMap, b: RankMap) -> float | None:
    """The noise between two results: each has that between two draws like its own."""
    of_a, of_b = noise(a), noise(b)
    if of_a is None or of_b is None:
        return None
    return math.sqrt((of_a**2 + of_b**2) / 2)


def _rank_noise(plan: RankMap) -> float | None:
    if plan.rule in CONTROLS:
        return 0.0
    confidence, signal = plan.confidence, plan.signal
    if confidence and confidence.rank_noise is not None:
        return confidence.rank_noise
    if confidence:
        return _at_most(1 - confidence.expected_overlap, plan.spent["ranks"])
    if signal and signal.moved_by_rows is not None:
        return _at_most(signal.moved_by_rows, plan.spent["ranks"])
    return None


def _score_noise(plan: RankMap) -> float | None:
    return plan.confidence.score_noise if plan.confidence else None


def _at_most(expected: float, n_ranks: int) -> float:
    """What is hardly exceeded where only what is to be expected is known."""
    moved = max(0.0, expected) * n_ranks
    return min(1.0, (moved + _SURE * math.sqrt(moved)) / n_ranks) if n_ranks else 0.0


def _remarks(a: RankMap, b: RankMap) -> list[str]:
    """What the two differ in besides their ranks and scores."""
    in_common = _ranks(a).keys() & _ranks(b).keys()
    n_odd = len(_ranks(a).keys() ^ _ranks(b).keys())
    found = []
    if not in_common:
        found.append("no target module is in both: they are of other base models or targets")
    elif n_odd:
        found.append(f"{n_odd} target modules are in one of them only")
    if a.method != b.method:
        found.append(
            f"their methods differ: {a.method or 'unknown'} and {b.method or 'unknown'}"
        )
    if a.spent["ranks"] != b.spent["ranks"]:
        ranks = f"{a.spent['ranks']} and {b.spent['ranks']} ranks"
        found.append(f"they spend {ranks}, and what one spends more counts as moved")
    return found
