"""From all results to a verdict, by a rule that is stated and tested.

Loss decides. An arm wins if its loss is lower than uniform's over the same seeds, at 5 % after
Holm's correction for the number of arms; among several the one with the lowest loss. The winner
is then held against random ranks: if it is not lower than these, at 5 %, any uneven pattern does
as well. Without a winner the verdict says how large a difference could have been missed: the
farthest that the intervals reach, simultaneous at 95 % by Bonferroni. An arm that diverged in a
final run cannot win. Intervals in tables are each at 95 %.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from fimlora.errors import InvalidOption
from fimlora_worker.evaluation.judgement import (
    MORE_IS_BETTER,
    ArmSummary,
    Difference,
    Judgement,
    Verdict,
)
from fimlora_worker.evaluation.levers import find_levers
from fimlora_worker.evaluation.paired import LEVEL, Paired, differences_by_seed, holm, paired
from fimlora_worker.evaluation.runs import LOSS, RunResult
from fimlora_worker.evaluation.schedule import next_runs
from fimlora_worker.evaluation.settings import CONTROLS, RANDOM, UNIFORM, EvaluationSettings
from fimlora_worker.evaluation.summary import final_results, summarise, values_by_seed

ERROR_RATE = 1 - LEVEL
Values = Mapping[str, Mapping[int, float]]  # by arm and seed


def judge(settings: EvaluationSettings, results: Iterable[RunResult]) -> Judgement:
    """Judge what is finished; all tuning runs must be.

    Args:
        settings: Of the evaluation.
        results: One per run, in any order.

    Raises:
        InvalidOption: Tuning runs are lacking, so that no arm's rate is known.
    """
    runs = sorted(results, key=lambda result: result.spec.key)
    lacking = next_runs(settings, runs)
    if lacking and lacking[0].phase == "tuning":
        raise InvalidOption(
            f"{len(lacking)} tuning runs are not finished, such as {lacking[0].key}: no arm's "
            "learning rate is known"
        )
    arms = summarise(settings, runs)
    differences = _differences(arms, runs)
    return Judgement(
        verdict=_decide(arms, differences, runs),
        arms=tuple(arms),
        differences=tuple(differences),
        levers=find_levers(arms),
        n_runs=len(runs),
        seconds=math.fsum(result.seconds for result in runs),
        settings=settings.to_json(),
    )


def _differences(arms: Sequence[ArmSummary], runs: Sequence[RunResult]) -> list[Difference]:
    found = []
    metrics = dict.fromkeys(name for arm in arms for name in arm.metrics)
    for metric in metrics:
        values = _values(arms, runs, metric)
        for reference in CONTROLS:
            found.extend(_to_reference(values, reference, metric))
    return found


def _values(arms: Sequence[ArmSummary], runs: Sequence[RunResult], metric: str) -> Values:
    return {
        arm.name: values_by_seed(final_results(arm.name, arm.best_rate, runs), metric)
        for arm in arms
    }


def _to_reference(values: Values, reference: str, metric: str) -> list[Difference]:
    pairs: dict[str, tuple[list[float], Paired]] = {}
    for arm in values:
        each = differences_by_seed(values[arm], values[reference])
        if not _is_known(arm, reference) and (found := paired(each)):
            pairs[arm] = each, found
    adjusted = holm([found.p for _, found in pairs.values()])
    sign = 1 if metric in MORE_IS_BETTER else -1
    return [
        Difference(
            arm,
            reference,
            metric,
            mean=found.mean,
            low=found.low,
            high=found.high,
            p=found.p,
            p_holm=p_holm,
            n=found.n,
            n_better=sum(sign * difference > 0 for difference in each),
        )
        for (arm, (each, found)), p_holm in zip(pairs.items(), adjusted, strict=True)
    ]


def _is_known(arm: str, reference: str) -> bool:
    """Whether a difference is none, or that of random to uniform the other way round."""
    return arm == reference or (arm, reference) == (UNIFORM, RANDOM)


def _decide(
    arms: Sequence[ArmSummary], differences: Sequence[Difference], runs: Sequence[RunResult]
) -> Verdict:
    notes = _notes(arms)
    by_name = {arm.name: arm for arm in arms}
    to_uniform = [d for d in differences if d.reference == UNIFORM and d.metric == LOSS]
    if not to_uniform:
        sentence = (
            "Undecided: fewer than two seeds with a loss for uniform and another arm. Use "
            "uniform."
        )
        return Verdict("undecided", UNIFORM, sentence, notes)
    winners = [
        d
        for d in to_uniform
        if d.mean < 0 and d.p_holm <= ERROR_RATE and not by_name[d.arm].n_diverged
    ]
    if not winners:
        return _no_winner(arms, to_uniform, runs, notes)
    best = min(winners, key=lambda d: d.mean)
    to_random = next(
        (d for d in differences if _is(d, best.arm, RANDOM, LOSS)),
        None,
    )
    return _winner(best, to_random, differences, notes)


def _is(difference: Difference, arm: str, reference: str, metric: str) -> bool:
    return (difference.arm, difference.reference, difference.metric) == (arm, reference, metric)


def _no_winner(
    arms: Sequence[ArmSummary],
    to_uniform: Sequence[Difference],
    runs: Sequence[RunResult],
    notes: tuple[str, ...],
) -> Verdict:
    loss = _reach(arms, runs, LOSS)
    more = [
        f"{_reach(arms, runs, metric) * 100:.1f} points of {name}"
        for metric, name in (("accuracy", "accuracy"),)
        if any(metric in arm.metrics for arm in arms)
    ]
    also = f" ({more[0]})" if more else ""
    worse = [d.arm for d in to_uniform if d.mean > 0 and d.p_holm <= ERROR_RATE]
    beaten = f" Worse than uniform: {', '.join(worse)}." if worse else ""
    sentence = (
        f"No arm is better than uniform; no difference larger than {loss:.3g} of loss{also} at "
        f"95 % ({_seeds(to_uniform)}): use uniform.{beaten}"
    )
    return Verdict("no_difference", UNIFORM, sentence, notes)


def _reach(arms: Sequence[ArmSummary], runs: Sequence[RunResult], metric: str) -> float:
    """The largest difference to uniform that simultaneous intervals hold."""
    values = _values(arms, runs, metric)
    found = [
        paired(differences_by_seed(values[arm], values[UNIFORM]))
        for arm in values
        if arm != UNIFORM
    ]
    known = [each for each in found if each]
    level = 1 - ERROR_RATE / max(1, len(known))
    return max((each.reach(level) for each in known), default=math.nan)


def _winner(
    best: Difference,
    to_random: Difference | None,
    differences: Sequence[Difference],
    notes: tuple[str, ...],
) -> Verdict:
    accuracy = next((d for d in differences if _is(d, best.arm, UNIFORM, "accuracy")), None)
    also = f", accuracy {_signed(accuracy, 100)} points" if accuracy else ""
    head = (
        f"{best.arm} is better than uniform by {-best.mean:.3g} +- {_half(best):.2g} of loss on "
        f"this task ({best.n} seeds, 95 %{also})"
    )
    if best.arm == RANDOM:
        sentence = f"{head}, and its ranks are random: any uneven pattern does it."
        return Verdict("any_uneven", RANDOM, sentence, notes)
    if to_random is None:
        return Verdict("undecided", UNIFORM, f"{head}; nothing to hold against random.", notes)
    against = f"against random {_signed(to_random)}"
    if to_random.mean < 0 and to_random.p <= ERROR_RATE:
        return Verdict("better", best.arm, f"{head}; {against}: use {best.arm}.", notes)
    return Verdict(
        "any_uneven", best.arm, f"{head}; {against}: any uneven pattern does it.", notes
    )


def _notes(arms: Sequence[ArmSummary]) -> tuple[str, ...]:
    """What one must know of single arms to read the verdict."""
    return tuple(note for arm in arms for note in _notes_on(arm))


def _notes_on(arm: ArmSummary) -> Iterable[str]:
    if arm.best_rate is None:
        rates = ", ".join(f"{each.rate:g}" for each in arm.rates)
        yield f"{arm.name} diverged at every learning rate ({rates}); it is not compared."
        return
    if arm.n_diverged:
        yield (
            f"{arm.name} diverged in {arm.n_diverged} of {arm.n_final} final runs; these are left "
            "out of its figures, and it cannot win."
        )
    if arm.is_at_edge:
        yield (
            f"The best rate of {arm.name}, {arm.best_rate:g}, is at the edge of the grid: a rate "
            "beyond it may be better."
        )


def _seeds(differences: Sequence[Difference]) -> str:
    counts = sorted({d.n for d in differences})
    return f"{' to '.join(map(str, counts))} seeds"


def _signed(difference: Difference, factor: float = 1) -> str:
    return f"{factor * difference.mean:+.3g} +- {factor * _half(difference):.2g}"


def _half(difference: Difference) -> float:
    return (difference.high - difference.low) / 2
