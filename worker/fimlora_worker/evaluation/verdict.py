"""From all results to a verdict, by a rule that is stated and tested.

Loss decides. An arm wins if its loss is lower than uniform's over the same seeds, at 5 % after
Holm's correction for the number of arms; among several the one with the lowest loss. The winner
is then held against random ranks. Where it is not lower than these at 5 %, and random ranks win
over uniform, too, any uneven pattern does it; where random does not win, all that is said is that
the two were not told apart. Where experts were selected, random experts are held against it alike.
Without a winner the verdict says how large a difference could have been missed: the farthest that
the intervals reach, simultaneous at 95 % by Bonferroni. Of accuracy it says so only where every
interval is as wide as one held-out row at least: arms that answer alike have none, and counts are
no finer. An arm that diverged in a final run cannot win, and uniform that did is not recommended.
Intervals in tables are each at 95 %.
"""

import math
from collections.abc import Iterable, Sequence

from fimlora.errors import InvalidOption
from fimlora_worker.evaluation.differences import find_differences, values_of
from fimlora_worker.evaluation.judgement import ArmSummary, Difference, Judgement, Verdict
from fimlora_worker.evaluation.levers import find_levers
from fimlora_worker.evaluation.notes import find_notes
from fimlora_worker.evaluation.paired import LEVEL, differences_by_seed, paired
from fimlora_worker.evaluation.runs import LOSS, RunResult
from fimlora_worker.evaluation.schedule import next_runs
from fimlora_worker.evaluation.settings import (
    RANDOM,
    RANDOM_EXPERTS,
    UNIFORM,
    EvaluationSettings,
)
from fimlora_worker.evaluation.summary import summarise

ERROR_RATE = 1 - LEVEL
ACCURACY = "accuracy"


def judge(
    settings: EvaluationSettings, results: Iterable[RunResult], *, n_tested: int | None = None
) -> Judgement:
    """Judge what is finished; all tuning runs must be.

    Args:
        settings: Of the evaluation.
        results: One per run, in any order.
        n_tested: Held-out rows, for the notes and for what accuracy can resolve.

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
    differences = find_differences(arms, runs)
    notes = find_notes(arms, n_tested)
    return Judgement(
        verdict=_decide(arms, differences, runs, notes, n_tested),
        arms=tuple(arms),
        differences=tuple(differences),
        levers=find_levers(arms),
        n_runs=len(runs),
        seconds=math.fsum(result.seconds for result in runs),
        settings=settings.to_json(),
    )


def _decide(
    arms: Sequence[ArmSummary],
    differences: Sequence[Difference],
    runs: Sequence[RunResult],
    notes: tuple[str, ...],
    n_tested: int | None,
) -> Verdict:
    by_name = {arm.name: arm for arm in arms}
    to_uniform = [d for d in differences if d.reference == UNIFORM and d.metric == LOSS]
    winners = [
        d
        for d in to_uniform
        if d.mean < 0 and d.p_holm <= ERROR_RATE and not by_name[d.arm].n_diverged
    ]
    if winners:
        return _winner(winners, by_name[UNIFORM], differences, notes, n_tested)
    if _is_unstable(by_name[UNIFORM]):
        return _unstable_uniform(arms, to_uniform, notes)
    if to_uniform:
        return _no_winner(arms, to_uniform, runs, notes, n_tested)
    sentence = (
        "Undecided: fewer than two seeds with a loss for uniform and another arm. Use uniform."
    )
    return Verdict("undecided", UNIFORM, sentence, notes)


def _is_unstable(arm: ArmSummary) -> bool:
    return arm.best_rate is None or arm.n_diverged > 0


def _unstable_uniform(
    arms: Sequence[ArmSummary], to_uniform: Sequence[Difference], notes: tuple[str, ...]
) -> Verdict:
    """Nobody is shown to be better, but uniform is not to be used: what diverges may do so again."""
    uniform = next(arm for arm in arms if arm.name == UNIFORM)
    where = "at every learning rate"
    if uniform.best_rate is not None:
        among = "no arm is better" if to_uniform else "too few seeds are left to compare"
        where = (
            f"in {uniform.n_diverged} of {uniform.n_final} final runs; in the others {among}"
        )
    head = f"Undecided: uniform diverged {where}."
    stable = [arm for arm in arms if not _is_unstable(arm) and LOSS in arm.metrics]
    if not stable:
        advice = "No other arm ended all its final runs with a loss: give lower learning rates."
        return Verdict("undecided", UNIFORM, f"{head} {advice}", notes)
    best = min(stable, key=lambda arm: arm.metrics[LOSS].mean)
    sentence = (
        f"{head} Of the arms that did not diverge {best.name} has the least loss "
        f"({best.metrics[LOSS].mean:.3g}, {best.n_final} seeds): use {best.name}, or give lower "
        "learning rates."
    )
    return Verdict("undecided", best.name, sentence, notes)


def _is(difference: Difference, arm: str, reference: str, metric: str) -> bool:
    return (difference.arm, difference.reference, difference.metric) == (arm, reference, metric)


def _no_winner(
    arms: Sequence[ArmSummary],
    to_uniform: Sequence[Difference],
    runs: Sequence[RunResult],
    notes: tuple[str, ...],
    n_tested: int | None,
) -> Verdict:
    missed = _missed(arms, runs, n_tested, _seeds(to_uniform))
    worse = [d.arm for d in to_uniform if d.mean > 0 and d.p_holm <= ERROR_RATE]
    beaten = f" Worse than uniform: {', '.join(worse)}." if worse else ""
    sentence = f"No arm is better than uniform; {missed}: use uniform.{beaten}"
    return Verdict("no_difference", UNIFORM, sentence, notes)


def _missed(
    arms: Sequence[ArmSummary], runs: Sequence[RunResult], n_tested: int | None, seeds: str
) -> str:
    """How large a difference to uniform may have been missed, in words."""
    loss = _reach(arms, runs, LOSS)
    if loss is None:
        return f"no difference changes with the seed, so that none can be bounded ({seeds})"
    if not any(ACCURACY in arm.metrics for arm in arms):
        return f"no difference larger than {loss:.3g} of loss at 95 % ({seeds})"
    accuracy = _reach(arms, runs, ACCURACY, finest=_one_row(n_tested))
    if accuracy is None:
        said = f"no difference larger than {loss:.3g} of loss at 95 % ({seeds})"
        return f"{said}; {_unresolved(n_tested)}"
    points = f"{accuracy * 100:.1f} points of accuracy"
    return f"no difference larger than {loss:.3g} of loss ({points}) at 95 % ({seeds})"


def _one_row(n_tested: int | None) -> float:
    """The least by which two shares of the held-out rows differ."""
    return 1 / n_tested if n_tested else 0.0


def _unresolved(n_tested: int | None) -> str:
    if not n_tested:
        return "accuracy was not resolved (arms answer alike)"
    return (
        f"accuracy was not resolved ({n_tested} rows: one row is "
        f"{100 * _one_row(n_tested):.3g} points)"
    )


def _reach(
    arms: Sequence[ArmSummary], runs: Sequence[RunResult], metric: str, *, finest: float = 0.0
) -> float | None:
    """The largest difference to uniform that simultaneous intervals hold.

    ``None`` where all intervals lack, as nothing varies, or, of a metric that comes in steps, one
    lacks or its half is finer than a step.
    """
    values = values_of(arms, runs, metric)
    found = [
        paired(differences_by_seed(values[arm], values[UNIFORM]))
        for arm in values
        if arm != UNIFORM
    ]
    known = [each for each in found if each]
    level = 1 - ERROR_RATE / max(1, len(known))
    varying = [each for each in known if each.spread]
    if not varying or (metric != LOSS and len(varying) < len(known)):
        return None
    if any(each.half_width(level) < finest for each in varying):
        return None
    return max(each.reach(level) if each.spread else abs(each.mean) for each in known)


def _winner(
    winners: Sequence[Difference],
    uniform: ArmSummary,
    differences: Sequence[Difference],
    notes: tuple[str, ...],
    n_tested: int | None,
) -> Verdict:
    best = min(winners, key=lambda d: d.mean)
    head = _head(best, uniform, differences, n_tested)
    if best.arm == RANDOM:
        sentence = f"{head}, and its ranks are random: any uneven pattern does it."
        return Verdict("any_uneven", RANDOM, sentence, notes)
    if best.arm == RANDOM_EXPERTS:
        sentence = f"{head}, and its experts are random: any selection of as many does it."
        return Verdict("any_experts", RANDOM_EXPERTS, sentence, notes)
    against_experts, is_selection = _against(RANDOM_EXPERTS, best, differences)
    if any(d.arm == RANDOM_EXPERTS for d in winners) and not is_selection:
        sentence = (
            f"{head}; {against_experts}, and random experts are better than uniform, too: any "
            "selection of as many does it."
        )
        return Verdict("any_experts", best.arm, sentence, notes)
    against, is_told_apart = _against(RANDOM, best, differences)
    if any(d.arm == RANDOM for d in winners) and not is_told_apart:
        sentence = (
            f"{head}; {against}, and random is better than uniform, too: any uneven pattern "
            "does it."
        )
        return Verdict("any_uneven", best.arm, sentence, notes)
    if any(d.reference == RANDOM_EXPERTS for d in differences):
        against = f"{against}; {against_experts}"
    return Verdict("better", best.arm, f"{head}; {against}: use {best.arm}.", notes)


def _head(
    best: Difference,
    uniform: ArmSummary,
    differences: Sequence[Difference],
    n_tested: int | None,
) -> str:
    also = _accuracy_too(best, differences, n_tested)
    seeds = f"{best.n} seeds" + (
        " in which uniform did not diverge" if _is_unstable(uniform) else ""
    )
    return (
        f"{best.arm} is better than uniform by {_with_half(f'{-best.mean:.3g}', best)} of loss on "
        f"this task ({seeds}, 95 %{also})"
    )


def _accuracy_too(
    best: Difference, differences: Sequence[Difference], n_tested: int | None
) -> str:
    found = next((d for d in differences if _is(d, best.arm, UNIFORM, ACCURACY)), None)
    if found is None:
        return ""
    if _half(found) >= _one_row(n_tested):  # not if there is no interval
        return f", accuracy {_signed(found, 100)} points"
    return f"; {_unresolved(n_tested)}"


def _against(
    control: str, best: Difference, differences: Sequence[Difference]
) -> tuple[str, bool]:
    """How the winner stands to random ranks, or experts, in words, and whether they differ."""
    found = next((d for d in differences if _is(d, best.arm, control, LOSS)), None)
    if found is None:
        return f"nothing to hold against {control}", False
    if found.p > ERROR_RATE:
        return f"not told apart from {control} ({_signed(found)})", False
    if found.mean < 0:
        return f"against {control} {_signed(found)}", True
    return f"worse than {control} ({_signed(found)})", False


def _seeds(differences: Sequence[Difference]) -> str:
    counts = sorted({d.n for d in differences})
    return f"{' to '.join(map(str, counts))} seeds"


def _signed(difference: Difference, factor: float = 1) -> str:
    return _with_half(f"{factor * difference.mean:+.3g}", difference, factor)


def _with_half(mean: str, difference: Difference, factor: float = 1) -> str:
    half = factor * _half(difference)
    return mean if math.isnan(half) else f"{mean} +- {half:.2g}"


def _half(difference: Difference) -> float:
    return (difference.high - difference.low) / 2
