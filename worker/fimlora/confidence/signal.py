"""How much of a plan follows from the task: how far it moves when the labels mean nothing.

The plan of the null has the scores of the same examples under labels of other ones; where it
differs from the plan, the labels are the reason, or chance. How far chance alone moves a plan is
known in two ways. The plans of the two halves of the examples differ by nothing else. They have
half as many examples: a score that is a mean of them varies less with all of them, so the distance
of the halves is taken times 1/sqrt(2), or what unequal halves ask for (`shrinkage`); spectra and
what is made of the mean gradient, which may be noise of the same shape at any number of examples,
vary as they do. And where a score is a mean of one value per example,
labels that mean nothing make no difference to which of an example's two values is called the
true one: some hundred draws of that show how far such plans are apart. A head that was fitted on
the very rows has seen their labels, which is a difference from the null that is no task; scores
of the mean gradient show it. Where estimates may be below zero, and come to nothing or less
over all modules of the run or of a half of it, those above zero are there by chance: such a plan
is uniform for want of a score, two such halves are not apart, and there is no signal.
A plan that holds rows against others to retain is held against the same plan with the labels of
the first permuted; its halves are halves of both.

Distances are shares of the ranks (of the parameters, at a budget in these) that lie elsewhere.
Nothing here imports torch.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fimlora.allocation.distance import moved_share
from fimlora.allocation.division import division_of, share_parts
from fimlora.allocation.planning import fits_any_scores, ranks_like
from fimlora.allocation.units import Floats
from fimlora.confidence.correlation import spearman
from fimlora.errors import InvalidOption
from fimlora.methods.fim_adapter import ADAPTER_GROUP
from fimlora.methods.registry import CONTROLS, find_method, needs_null
from fimlora.methods.score import obstacle as lacks
from fimlora.methods.score import score
from fimlora.methods.vila import denominators
from fimlora.plan import RankPlan
from fimlora.scores import Scores
from fimlora.statistics import Statistics
from fimlora.statistics.options import Passes

N_DRAWS = 100
# The number of ranks that move varies by about its root.
_SURE = 2.0
# A plan that follows from the task moves at least so many times as far as by chance.
_CLEAR = 2.0
# Where fewer labels than this share were exchanged, the sentence says so.
_RARE = 0.2
# Methods whose score is a mean over examples, times a number that their labels do not touch.
_MEANS = {"fim", "vila"}
_BY_EXAMPLE = {None, "exact", "sketched"}
# Sums of whole numbers of so many bits are exact, in whatever order a machine adds.
_BITS = 30

Ranks = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Signal:
    """How much of a plan follows from the task.

    Attributes:
        verdict: ``none`` where labels move the plan no further than chance may: the furthest of
            the draws, and other rows with two roots of the number of ranks that both move; or
            where the estimates of the run or of a half come to nothing or less. ``task`` where
            they move it further than that, and more than twice as far as other rows and as the
            furthest of the draws; ``weak`` between the two.
        sentence: What that means, with the figures.
        moved_by_labels: Share of the plan that the null has elsewhere.
        moved_by_rows: Share that other rows of the same data are expected to move; ``None``
            where the halves are not known.
        moved_between_halves: The distance of the halves that this is taken from.
        moved_by_chance: The furthest that plans were apart when it was drawn which of an
            example's two values is the true one; ``None`` where there is no value per example.
        label_correlation: Spearman's, of the scores and of those of the null; ``None`` where
            all are equal.
        half_correlation: Spearman's, of the scores of the halves.
        n_targets: Labels, or tokens to predict, of the null.
        n_changed: How many of these are other ones than in the run.
        null_ranks: Ranks of the null, in the order of the modules; none where no label can
            move the plan.
        half_ranks: Those of the halves, if these are known.
    """

    verdict: str
    sentence: str
    moved_by_labels: float
    moved_by_rows: float | None
    moved_between_halves: float | None
    moved_by_chance: float | None
    label_correlation: float | None
    half_correlation: float | None
    n_targets: int
    n_changed: int
    null_ranks: tuple[int, ...]
    half_ranks: tuple[tuple[int, ...], ...]

    def to_json(self) -> dict[str, Any]:
        """As plain data for a rank map: a few short numbers per module."""
        shares = {
            name: None if (share := getattr(self, name)) is None else round(share, 4)
            for name in (
                "moved_by_labels",
                "moved_by_rows",
                "moved_between_halves",
                "moved_by_chance",
            )
        }
        return {
            "verdict": self.verdict,
            "sentence": self.sentence,
            **shares,
            "label_correlation": self.label_correlation,
            "half_correlation": self.half_correlation,
            "n_targets": self.n_targets,
            "n_changed": self.n_changed,
            "null_ranks": list(self.null_ranks),
            "half_ranks": [list(ranks) for ranks in self.half_ranks],
        }


@dataclass(frozen=True, slots=True)
class SignalSource:
    """What the signal of plans of one method is taken from, whatever their budget; it is small.

    Attributes:
        run: Scores of the run.
        null: Scores of its null; ``None`` where no label can move them.
        halves: Scores of its halves, if these are known.
        values: Each example's value per module (N M) and that of its null, where a score is the
            mean of these.
        targets: Labels of the null, and how many of them were exchanged for another.
        n_halves: Examples of each half.
    """

    run: Scores
    null: Scores | None
    halves: tuple[Scores, ...]
    values: tuple[Floats, Floats] | None
    targets: tuple[int, int]
    n_halves: tuple[int, ...]

    @property
    def n_numbers(self) -> int:
        """How many numbers that are, without those of the run."""
        parts = (*filter(None, [self.null]), *self.halves)
        n_values = 0 if self.values is None else 2 * self.values[0].size
        n_spectra = sum(len(s) for part in parts for s in part.spectra.values())
        return n_values + n_spectra + sum(len(part.by_module) for part in parts)


def obstacle(
    statistics: Statistics,
    method: str = "fim",
    *,
    aggregation: str = "mean",
    estimator: str | None = None,
) -> str | None:
    """Say why nothing is known of the signal of a method's plans.

    Args:
        statistics: What was measured.
        method: The method.
        aggregation: As for `fimlora.score`.
        estimator: As for `fimlora.score`.

    Returns:
        The reason as a sentence without a stop, or ``None`` where `signal_of` has an answer.
    """
    if method in CONTROLS:
        return f"method {method!r} looks at no score, so that no label would move its plan"
    if not find_method(method).reads_labels:
        return lacks(statistics, method)
    if needs_null(method):
        return (
            f"method {method!r} goes by the null itself, which has no other to be held against"
        )
    if statistics.no_null is not None:
        return f"there is no null: {statistics.no_null}"
    if statistics.null is None or statistics.null.null_targets is None:
        return "the null was not measured; measure with null=True and halves=True"
    if not statistics.null.null_targets[1]:
        return "all rows have one label, so that none could be exchanged for another"
    if statistics.halves is None and not _has_values(
        statistics, method, aggregation=aggregation, estimator=estimator
    ):
        return (
            "without halves nothing shows how far other rows would move the plan; measure at "
            "least two batches, with halves=True"
        )
    null, *halves = _held_against(statistics)
    for part, which in (
        (statistics, "the run"),
        (null, "the null"),
        *((half, "a half of the examples") for half in halves),
    ):
        if reason := lacks(part, method):
            return f"{which} cannot be scored: {reason}"
    return None


def source_of(
    statistics: Statistics,
    method: str = "fim",
    *,
    scale: int | float | None = None,
    aggregation: str = "mean",
    estimator: str | None = None,
) -> SignalSource:
    """Take from statistics what the signal of a method's plans goes by.

    Args:
        statistics: What was measured, with its null and halves.
        method: The method.
        scale: As for `fimlora.score`.
        aggregation: As for `fimlora.score`.
        estimator: As for `fimlora.score`.

    Returns:
        It, in memory.

    Raises:
        InvalidOption: Nothing can be said, for the reason that `obstacle` gives.
    """
    taken_with: dict[str, Any] = {"aggregation": aggregation, "estimator": estimator}
    if reason := obstacle(statistics, method, **taken_with):
        raise InvalidOption(f"this plan has no signal to state: {reason}")
    if not find_method(method).reads_labels:
        return _without_labels(statistics, method, scale, taken_with)
    assert statistics.null is not None
    assert statistics.null.null_targets is not None
    run, null, *halves = (
        score(part, method, scale=scale, **taken_with)
        for part in (statistics, *_held_against(statistics))
    )
    values = None
    if _has_values(statistics, method, **taken_with):
        values = _values(statistics, run), _values(statistics.null, run)
    n_halves = tuple(half.n_examples for half in statistics.halves or ())
    targets = statistics.null.null_targets
    return SignalSource(run, null, tuple(halves), values, targets, n_halves)


def _without_labels(
    statistics: Statistics,
    method: str,
    scale: int | float | None,
    taken_with: Mapping[str, Any],
) -> SignalSource:
    """What is known of the plans of a method that looks at no label: how far other rows move them."""
    halves = [half for half in statistics.halves or () if lacks(half, method) is None]
    scores = [score(part, method, scale=scale, **taken_with) for part in (statistics, *halves)]
    n_halves = tuple(half.n_examples for half in halves)
    return SignalSource(scores[0], None, tuple(scores[1:]), None, (0, 0), n_halves)


def signal_of(
    statistics: Statistics,
    plan: RankPlan,
    *,
    aggregation: str = "mean",
    estimator: str | None = None,
    n_draws: int = N_DRAWS,
    seed: int = 0,
) -> Signal:
    """Say how much of a plan follows from the task.

    Args:
        statistics: What was measured, with its null and halves.
        plan: The plan that was made of it.
        aggregation: As the plan's scores were taken with.
        estimator: As the plan's scores were taken with.
        n_draws: How often it is drawn which values are the true ones.
        seed: Seed of that.

    Returns:
        How far labels move the plan and how far chance does, in all and by module; a verdict,
        and a sentence.

    Raises:
        InvalidOption: Nothing can be said, for the reason that `obstacle` gives; or these
            options do not give the plan.
    """  # noqa: DOC502 - the helpers raise
    source = source_of(
        statistics,
        plan.method or "fim",
        scale=plan.scale,
        aggregation=aggregation,
        estimator=estimator,
    )
    return signal_from(source, plan, n_draws=n_draws, seed=seed)


def signal_from(
    source: SignalSource,
    plan: RankPlan,
    *,
    n_draws: int = N_DRAWS,
    seed: int = 0,
) -> Signal:
    """Do what `signal_of` does, from what was taken of statistics before.

    Args:
        source: What `source_of` gave for the plan's method.
        plan: The plan.
        n_draws: How often it is drawn which values are the true ones.
        seed: Seed of that.

    Returns:
        The signal.

    Raises:
        InvalidOption: The plan goes by no score, or these options do not give it.
    """
    if plan.rule in CONTROLS:
        raise InvalidOption(
            f"rule {plan.rule!r} looks at no score, so that no label would move its plan"
        )
    if reason := no_room(plan):
        raise InvalidOption(f"this plan has no signal to state: {reason}")
    run, null, *halves = (
        ranks_like(plan, scores)
        for scores in (source.run, source.null or source.run, *source.halves)
    )
    if run != dict(plan.ranks):
        raise InvalidOption(
            "these statistics give other ranks with these options; give aggregation and "
            "estimator as the plan was made with"
        )
    costs = None if plan.budget.unit == "rank" else {m.name: m.cost for m in plan.modules}
    by_chance = None
    if source.values is not None and plan.rule == "proportional":
        by_chance = _by_chance(source.values, plan, n_draws, seed)
    apart = moved_share(*halves, costs=costs) if len(halves) > 1 else None
    if source.null is None:
        return _none(source, apart, tuple(_in_order(plan, half) for half in halves))
    return judged(
        plan,
        moved_by_labels=moved_share(run, null, costs=costs),
        moved_between_halves=apart,
        moved_by_chance=by_chance,
        label_correlation=_correlation(source.run, source.null),
        half_correlation=_correlation(*source.halves) if halves else None,
        targets=source.targets,
        lacking=_without_score(source),
        n_halves=source.n_halves,
        null_ranks=_in_order(plan, null),
        half_ranks=tuple(_in_order(plan, half) for half in halves),
    )


def _none(
    source: SignalSource, apart: float | None, half_ranks: tuple[tuple[int, ...], ...]
) -> Signal:
    """State that no label moves a plan, by what its method looks at."""
    reads_rows = find_method(source.run.method or "fim").passes is not Passes.NONE
    looked_at = "activations" if reads_rows else "weights"
    sentence = f"{looked_at} alone: no label moves this plan"
    if apart is not None:
        sentence += f" (other rows {_percent(apart)})"
    return Signal(
        verdict="none",
        sentence=sentence,
        moved_by_labels=0.0,
        moved_by_rows=apart,
        moved_between_halves=apart,
        moved_by_chance=None,
        label_correlation=None,
        half_correlation=None if apart is None else _correlation(*source.halves),
        n_targets=0,
        n_changed=0,
        null_ranks=(),
        half_ranks=half_ranks,
    )


def source_if_any(
    statistics: Statistics, method: str, *, scale: int | float, aggregation: str = "mean"
) -> SignalSource | str | None:
    """Take what `with_signal` goes by, if the null was measured and the method goes by scores.

    Args:
        statistics: What was measured.
        method: The method.
        scale: As for `fimlora.score`.
        aggregation: As for `fimlora.score`.

    Returns:
        It; the reason where nothing can be said of it; ``None`` where nothing was asked.
    """
    is_known = method not in CONTROLS and not find_method(method).reads_labels
    is_asked = is_known or statistics.null is not None or statistics.no_null is not None
    if not is_asked or method in CONTROLS or needs_null(method):
        return None
    reason = obstacle(statistics, method, aggregation=aggregation)
    return reason or source_of(statistics, method, scale=scale, aggregation=aggregation)


def no_room(plan: RankPlan) -> str | None:
    """Say why other scores may have no plan of a plan's budget.

    Args:
        plan: The plan.

    Returns:
        The reason as a sentence without a stop, or ``None`` where they have one.
    """
    if fits_any_scores(plan):
        return None
    return (
        "its layers are of unlike size, and those that other labels or rows choose may not hold "
        "this budget; raise r_max, or choose more layers"
    )


def with_signal(plan: RankPlan, source: SignalSource | str | None) -> RankPlan:
    """Put beside a plan how much of it follows from the task.

    Args:
        plan: The plan.
        source: What `source_if_any` gave for its method.

    Returns:
        The plan, with a signal, or with the reason why there is none, if that was asked; as it
        was where its rule looks at no score.
    """
    if source is None or plan.rule in CONTROLS:
        return plan
    source = no_room(plan) or source
    if isinstance(source, str):
        found = {"verdict": "unknown", "sentence": f"its signal is not known: {source}"}
        return replace(plan, signal=found)
    return replace(plan, signal=signal_from(source, plan).to_json())


def judged(
    plan: RankPlan,
    *,
    moved_by_labels: float,
    moved_between_halves: float | None,
    moved_by_chance: float | None,
    targets: tuple[int, int],
    lacking: str | None = None,
    n_halves: tuple[int, ...] = (1, 1),
    **known: Any,
) -> Signal:
    """Judge distances, and put it in words.

    Args:
        plan: The plan.
        moved_by_labels: As in `Signal`.
        moved_between_halves: As in `Signal`.
        moved_by_chance: As in `Signal`; one of this and the one before is known.
        targets: Labels of the null, and how many of them were exchanged for another.
        lacking: That nothing is left of the scores, in a sentence without a stop, if so.
        n_halves: Examples of each half.
        **known: All else that a signal states.

    Returns:
        The signal.
    """
    by_rows = None
    if moved_between_halves is not None:
        is_mean = plan.rule == "proportional" and plan.method in _MEANS
        by_rows = moved_between_halves * (shrinkage(*n_halves) if is_mean else 1)
    verdict = "none"
    if lacking is None:
        verdict = _verdict(moved_by_labels, by_rows, moved_by_chance, plan.spent.ranks)
    unit = "ranks" if plan.budget.unit == "rank" else "parameters"
    sentence = _sentence(verdict, unit, moved_by_labels, by_rows, moved_by_chance)
    return Signal(
        verdict=verdict,
        sentence="; ".join(filter(None, (sentence, lacking, _rare(targets)))),
        moved_by_labels=moved_by_labels,
        moved_by_rows=by_rows,
        moved_between_halves=moved_between_halves,
        moved_by_chance=moved_by_chance,
        n_targets=targets[0],
        n_changed=targets[1],
        **known,
    )


def shrinkage(one: int, other: int) -> float:
    """Say how much nearer than its halves two draws of a whole run are to each other.

    A mean of n examples has variance v / n. That of the difference of the halves is
    v (1 / N1 + 1 / N2), that of two draws of all N = N1 + N2 is 2 v / N; the root of their ratio
    is sqrt(2 N1 N2) / N, which is 1/sqrt(2) for equal halves and less for others.

    Args:
        one: Examples of one half, N1.
        other: Those of the other, N2.

    Returns:
        The distance of two such draws over that of the halves.
    """
    return math.sqrt(2 * one * other) / (one + other)


def _verdict(
    by_labels: float, by_rows: float | None, by_chance: float | None, n_ranks: int
) -> str:
    """Judge distances: what chance may do at most, and what other rows are expected to."""
    rows, chance = by_rows or 0.0, by_chance or 0.0
    if by_labels <= max(chance, rows + _SURE * math.sqrt((by_labels + rows) / n_ranks)):
        return "none"
    return "task" if by_labels > _CLEAR * max(rows, chance) else "weak"


def _sentence(
    verdict: str,
    unit: str,
    by_labels: float,
    by_rows: float | None,
    by_chance: float | None,
) -> str:
    """Say what a verdict means, and what it is held against."""
    moved, known = f"labels move {_percent(by_labels)} of the {unit}", []
    if by_rows is not None:
        known.append(f"other rows {_percent(by_rows)}")
    if by_chance is not None:
        known.append(f"chance up to {_percent(by_chance)}")
    noise = ", ".join(known)
    if verdict == "task":
        return f"{moved} ({noise})"
    if verdict == "weak":
        return f"a weak signal: {moved} ({noise}), so that little of this map is your task's"
    return (
        "no signal: this map is the model's, not your task's; uniform would do "
        f"({moved}, {noise})"
    )


def _rare(targets: tuple[int, int]) -> str | None:
    """Say that few labels were exchanged, if so."""
    if targets[1] >= _RARE * targets[0]:
        return None
    return f"only {_percent(targets[1] / targets[0])} of the labels had another to become"


def _without_score(source: SignalSource) -> str | None:
    """Say that nothing is left of the scores of the run or of a half, if so."""
    for part, where in (
        (source.run, ""),
        *((half, " in a half of the examples") for half in source.halves),
    ):
        energies = _estimates(part)
        if sum(energies) <= 0:
            n_left = sum(energy > 0 for energy in energies)
            rest = " and outweigh the others" if n_left else ""
            n = len(energies)
            return f"{n - n_left} of {n} estimates are not above zero{rest}{where}"
    return None


def _estimates(scores: Scores) -> list[float]:
    """What each module's score says of the energy of its gradient, also where it is below zero."""
    negative = scores.provenance.get("negative_estimates", {})
    return [negative.get(m.name, _value(scores, m.name)) * m.n_weights for m in scores.modules]


def _percent(share: float) -> str:
    """A share in whole percent, or with a digit more below one."""
    return f"{100 * share:.0f} %" if share >= 0.01 or not share else f"{100 * share:.1f} %"


def _has_values(
    statistics: Statistics, method: str, *, aggregation: str, estimator: str | None
) -> bool:
    """Whether a score is the mean of one value per example."""
    is_by_example = statistics.estimator.has_examples and estimator in _BY_EXAMPLE
    is_by_example &= estimator is not None or not statistics.quantities.get(ADAPTER_GROUP)
    # Of selected experts alone there is no such value.
    is_by_example &= all(module.experts is None for module in statistics.modules)
    return method in _MEANS and is_by_example and aggregation == "mean"


def _by_chance(
    values: tuple[Floats, Floats],
    plan: RankPlan,
    n_draws: int,
    seed: int,
) -> float:
    """How far plans get apart when it is drawn which of two values is an example's true one."""
    largest = np.maximum(values[0].max(axis=0), values[1].max(axis=0))
    unit = np.where(largest, largest, 1) / 2**_BITS
    true, null = (np.rint(some / unit) for some in values)
    drawn = np.random.default_rng(seed).integers(0, 2, size=(n_draws, len(true)))
    sums = drawn.astype(np.float64) @ (null - true) + true.sum(axis=0)
    both = np.concatenate([sums, true.sum(axis=0) + null.sum(axis=0) - sums])
    sizes = np.array([module.n_weights for module in plan.modules])
    ranks = share_parts(division_of(plan), both * (unit / sizes))
    one, other = ranks[:n_draws], ranks[n_draws:]
    weights = [1 if plan.budget.unit == "rank" else module.cost for module in plan.modules]
    apart, spent = np.abs(one - other) @ weights, (one + other) @ weights
    return float((apart / np.maximum(spent, 1)).max())


def _held_against(statistics: Statistics) -> list[Statistics]:
    """The null and the halves, each beside the rows to retain that it is scored with."""
    assert statistics.null is not None
    halves, retain = statistics.halves or (), statistics.retain
    if retain is None:
        return [statistics.null, *halves]
    beside = retain.halves or (retain, retain)
    return [
        replace(statistics.null, retain=retain),
        *(replace(half, retain=other) for half, other in zip(halves, beside, strict=False)),
    ]


def _values(statistics: Statistics, run: Scores) -> Floats:
    """Energy per example and module (N M), over what the run's scores are divided by."""
    below = denominators(run.provenance["contrast"]["retain"]) if run.method == "vila" else {}
    return np.column_stack(
        [statistics.example_energies[m.name] / below.get(m.name, 1) for m in statistics.modules]
    )


def _correlation(a: Scores, b: Scores) -> float | None:
    return spearman(*([_value(scores, m.name) for m in a.modules] for scores in (a, b)))


def _value(scores: Scores, name: str) -> float:
    """What a module goes by: its score, or the energy of its spectrum."""
    if scores.rule == "spectral":
        return float(np.square(scores.spectra[name]).sum())
    return scores.by_module[name]


def _in_order(plan: RankPlan, ranks: Ranks) -> tuple[int, ...]:
    return tuple(ranks[module.name] for module in plan.modules)
