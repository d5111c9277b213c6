"""What a reader of a plan should know before training by it, and what to do about it.

Each warning has a stable code, and a sentence with the number it is about and the next step.
Nothing here imports torch.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from fimlora.adapter.initial.stated import selection_warnings
from fimlora.allocation.distance import moved_share
from fimlora.methods.registry import CONTROLS
from fimlora.plan import PlanWarning, RankPlan
from fimlora.whole_names import TIED

FEW_EXAMPLES = 32
# A plan that moves less than this share of what uniform spends is uniform in effect.
UNIFORM_SHARE = 0.02
# Modules with more LoRA than weights are told of where most is spent on them: a few of the highest
# score, or small maps among large ones such as gates, are no sign of a budget too large.
WHOLE_SHARE = 0.5
# An overlap with another draw below this is worth more data, if most ranks are in doubt.
STABLE_OVERLAP = 0.95
_SHOWN = 5


def warnings_of(plan: RankPlan, *, unknown: str | None = None) -> tuple[PlanWarning, ...]:
    """Look a plan over.

    Args:
        plan: The plan, with its provenance and its confidence.
        unknown: Why nothing is known of its confidence, if so.

    Returns:
        The warnings, in a fixed order.
    """
    if plan.rule in CONTROLS:  # whatever was measured, no rank is from it
        return (
            *selection_warnings(plan),
            *_of_scaling(plan),
            *_of_ties(plan),
            *_of_size(plan),
        )
    return (
        *selection_warnings(plan),
        *_of_scaling(plan),
        *_of_ties(plan),
        *_of_examples(plan.provenance),
        *_of_classes(plan.provenance),
        *_of_head(plan.provenance),
        *_of_seeds(plan.provenance),
        *_of_size(plan),
        *_of_ranks(plan),
        *_of_confidence(plan.confidence, unknown, n_modules=len(plan.modules)),
        *_of_rounds(plan.provenance),
    )


_Found = Iterator[PlanWarning]


def _of_scaling(plan: RankPlan) -> _Found:
    """Of one alpha: ranks then change scales, as in the published code."""
    scales = [plan.scale_of(name) for name, rank in plan.ranks.items() if rank]
    if plan.scaling == "constant" or not scales:
        return
    root = "sqrt(rank)" if plan.scaling == "rslora" else "rank"
    yield PlanWarning(
        "scales_differ",
        f"one alpha of {plan.lora_alpha:g} for all modules gives each the scale alpha / {root}, "
        f"from {min(scales):.3g} to {max(scales):.3g}, so that ranks are learning rates, too; and "
        "readers without patterns, such as vLLM before 0.32, give all modules one scale: serve it "
        "with newer ones, or take scale in place of alpha",
    )


def _of_ties(plan: RankPlan) -> _Found:
    """Of LoRA on one name of a weight that has more: PEFT merges into the weight."""
    for name, other in (plan.provenance.get(TIED) or {}).items():
        if plan.ranks.get(name):
            both = "all of them" if "," in other else "both"
            yield PlanWarning(
                "tied_weight",
                f"{name} is one weight with {other}: the adapter is right as it is, but merging adds "
                f"its update to {both}, which gives another model; serve it unmerged, or measure and "
                "train a base model whose head is a copy of its own (tie_word_embeddings=False)",
            )


def _of_examples(facts: Mapping[str, Any]) -> _Found:
    n = facts.get("n_examples")
    if isinstance(n, int) and n < FEW_EXAMPLES:
        carry = "example carries" if n == 1 else "examples carry"
        yield PlanWarning(
            "few_examples",
            f"only {n} {carry} a label, and scores of so few are mostly chance: give at least "
            f"{FEW_EXAMPLES}, by more rows, more batches or n_batches auto",
        )


def _of_classes(facts: Mapping[str, Any]) -> _Found:
    """Of rows that have one label of a known set; few classes are counted one by one."""
    n, n_seen = facts.get("classes"), facts.get("classes_seen")
    if n is None or n_seen is None or n_seen == n:
        return
    if n_seen == 1:
        yield PlanWarning(
            "one_class",
            f"all examples are of one class of {n}, so that nothing tells classes apart: take "
            "rows of each, or more batches",
        )
        return
    counts = facts.get("label_counts", {})
    names = [name for name, count in counts.items() if not count][:_SHOWN]
    which = (
        f" ({', '.join(names)}{', ...' if len(names) < n - n_seen else ''})" if names else ""
    )
    yield PlanWarning(
        "missing_classes",
        f"{n - n_seen} of {n} classes have no example{which}: take more batches, or rows in "
        "which each class occurs",
    )


def _of_head(facts: Mapping[str, Any]) -> _Found:
    head = facts.get("head") or {}
    if n := head.get("measured_rows", 0):
        yield PlanWarning(
            "head_saw_measured",
            f"the head was fitted on {head['rows']} rows of which {n} are measured, too, and "
            "labels that it has seen look as if they followed from their rows, which makes the "
            "signal too strong: give more rows, or measure fewer of them by n_batches",
        )


def _of_seeds(facts: Mapping[str, Any]) -> _Found:
    if facts.get("estimator") == "sampled":
        yield PlanWarning(
            "seed_sensitive",
            "estimator sampled draws one random A, and another seed gives other scores: compare "
            "a second seed, or take exact or sketched, which depend on none or hardly",
        )


def _of_size(plan: RankPlan) -> _Found:
    """Of LoRA that has more parameters than the matrices it is to save training."""
    lora = {m.name: m.cost * plan.ranks[m.name] for m in plan.modules}
    whole = {m.name: m.n_trained * m.d_in * m.d_out for m in plan.modules}
    above = {name for name, n in lora.items() if n > whole[name]}
    n_lora, n_whole = (sum(some[name] for name in above) for some in (lora, whole))
    if not above or n_lora < WHOLE_SHARE * sum(lora.values()):
        return
    n_full = sum(m.name in above and m.full_rank == plan.ranks[m.name] for m in plan.modules)
    full = f", and {n_full} of them are at their full rank" if n_full else ""
    yield PlanWarning(
        "more_than_whole",
        f"{len(above)} of {len(lora)} modules have {n_lora:,} LoRA parameters, more than the "
        f"{n_whole:,} of training them whole{full}: lower the budget, name more target modules, "
        "or train them whole",
    )


def _of_ranks(plan: RankPlan) -> _Found:
    uniform = plan.controls.get("uniform")
    costs = None if plan.budget.unit == "rank" else {m.name: m.cost for m in plan.modules}
    if (
        uniform
        and _has_room(plan, costs)
        and (share := moved_share(plan.ranks, uniform, costs=costs)) < UNIFORM_SHARE
    ):
        what = "ranks" if costs is None else "parameters"
        n_below = len(plan.provenance.get("negative_estimates", ()))
        n = len(plan.modules)
        then = "train uniform ranks, or widen r_min and r_max if scores differ more"
        if plan.rule == "layers":
            then = "train uniform ranks, or choose fewer layers by n_layers"
        if n_below > n / 2:  # wider bounds would only spread chance
            then = (
                f"{n_below} of {n} estimates are below zero, which no bounds change; train "
                "uniform ranks, or measure more examples"
            )
        yield PlanWarning(
            "nearly_uniform",
            f"the plan moves {share:.1%} of the {what} of uniform LoRA, so it is uniform in "
            f"effect: {then}",
        )
    if plan.rule == "layers":  # all modules of a chosen layer have one rank, at no bound's will
        return
    at_low = sum(rank == plan.r_min for rank in plan.ranks.values())
    at_high = sum(plan.ranks[m.name] == plan.r_max < m.full_rank for m in plan.modules)
    n = len(plan.modules)
    if plan.r_min < plan.r_max and at_low + at_high > n / 2:
        yield PlanWarning(
            "at_bounds",
            f"{at_low + at_high} of {n} modules stand at a bound ({at_low} at r_min="
            f"{plan.r_min}, {at_high} at r_max={plan.r_max}), which hides how far their scores "
            "go: read the scores beside the ranks, or lower r_min and raise r_max",
        )


def _has_room(plan: RankPlan, costs: Mapping[str, int] | None) -> bool:
    """Whether enough lies below full rank for scores to move it: else all plans are like this."""
    spent = {
        name: rank * (1 if costs is None else costs[name]) for name, rank in plan.ranks.items()
    }
    free = sum(spent[m.name] for m in plan.modules if plan.ranks[m.name] < m.full_rank)
    return free >= UNIFORM_SHARE * sum(spent.values())


def _of_confidence(
    confidence: Mapping[str, Any] | None, unknown: str | None, *, n_modules: int
) -> _Found:
    if unknown is not None:
        message = f"how sure the ranks are is not known: {unknown}"
        yield PlanWarning("confidence_unknown", message)
    if confidence is None:
        return
    n, overlap = confidence["n_unresolved"], confidence["expected_overlap"]
    if n > n_modules / 2 and overlap < STABLE_OVERLAP:
        yield PlanWarning(
            "unresolved",
            f"{n} of {n_modules} ranks are not resolved by {confidence['n_examples']} examples, "
            f"and another draw would move about {1 - overlap:.1%} of the plan: measure more, "
            "by more batches or n_batches auto",
        )


def _of_rounds(facts: Mapping[str, Any]) -> _Found:
    rounds = facts.get("n_batches_by")
    if not rounds or rounds["stopped"] == "stable":
        return
    why, then = {
        "cap": (f"max_batches={rounds['max_batches']} are", "raise max_batches"),
        "data": ("all rows are", "give more rows"),
    }[rounds["stopped"]]
    yield PlanWarning(
        "not_stable",
        f"{why} measured, and another draw would still move about {rounds['expected_move']:.1%} "
        f"of the plan, more than the tolerance of {rounds['tolerance']:.1%}: {then}, or accept "
        "a larger tolerance",
    )
