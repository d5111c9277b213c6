"""How far arms lie from the controls, paired by seed, with p values adjusted by Holm's method."""

from collections.abc import Mapping, Sequence

from fimlora_worker.evaluation.judgement import MORE_IS_BETTER, ArmSummary, Difference
from fimlora_worker.evaluation.paired import Paired, differences_by_seed, holm, paired
from fimlora_worker.evaluation.runs import RunResult
from fimlora_worker.evaluation.settings import CONTROLS, RANDOM_EXPERTS
from fimlora_worker.evaluation.summary import final_results, values_by_seed

REFERENCES = (*CONTROLS, RANDOM_EXPERTS)
Values = Mapping[str, Mapping[int, float]]  # by arm and seed


def find_differences(arms: Sequence[ArmSummary], runs: Sequence[RunResult]) -> list[Difference]:
    """Every arm minus each control, in every metric, over the seeds that both have."""
    found = []
    metrics = dict.fromkeys(name for arm in arms for name in arm.metrics)
    for metric in metrics:
        values = values_of(arms, runs, metric)
        for reference in (name for name in REFERENCES if name in values):
            found.extend(_to_reference(values, reference, metric))
    return found


def values_of(arms: Sequence[ArmSummary], runs: Sequence[RunResult], metric: str) -> Values:
    """A metric of the final runs at each arm's best rate."""
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
    """Whether a difference is none, or that of two controls the other way round."""
    if arm not in REFERENCES:
        return False
    return REFERENCES.index(arm) <= REFERENCES.index(reference)
