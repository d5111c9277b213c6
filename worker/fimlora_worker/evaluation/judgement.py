"""What an evaluation found, as data: the arms, their differences, the levers, the verdict."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fimlora_worker.evaluation.tuning import RateLoss

Code = Literal["no_difference", "better", "any_uneven", "any_experts", "undecided"]
# Metrics of which more is better; of all others less is.
MORE_IS_BETTER = frozenset({"accuracy", "macro_f1", "pearson"})


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and standard deviation over the final seeds."""

    mean: float
    spread: float


@dataclass(frozen=True, slots=True)
class ArmSummary:
    """What the runs of an arm came to.

    Attributes:
        name: Of the arm.
        best_rate: The rate it ran with; ``None`` if it diverged at every rate.
        rates: Tuning loss at every rate of the grid.
        is_at_edge: Whether the best rate is the lowest or the highest that was tried.
        n_final: Final runs.
        n_diverged: Final runs that diverged.
        adapter_parameters: Least and most over the runs.
        trainable_parameters: Most over the runs, a head that is trained along included.
        seconds: Mean time of a final run.
        metrics: By name.
        curve: Step, mean and standard deviation of the held-out loss.
    """

    name: str
    best_rate: float | None
    rates: tuple[RateLoss, ...]
    is_at_edge: bool
    n_final: int
    n_diverged: int
    adapter_parameters: tuple[int, int]
    trainable_parameters: int
    seconds: float
    metrics: Mapping[str, Spread]
    curve: tuple[tuple[int, float, float], ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """A metric of an arm minus that of a control, over the seeds that both ran with.

    Attributes:
        arm: The arm.
        reference: The control.
        metric: The metric.
        mean: Mean of the differences.
        low: Lower end of its 95 % interval.
        high: Its upper end.
        p: Of the t test.
        p_holm: Adjusted for the number of arms that are compared with this control.
        n: Pairs.
        n_better: Pairs in which the arm is better.
    """

    arm: str
    reference: str
    metric: str
    mean: float
    low: float
    high: float
    p: float
    p_holm: float
    n: int
    n_better: int


@dataclass(frozen=True, slots=True)
class Levers:
    """How much the learning rate moves the loss, and how much the ranks do.

    Attributes:
        rate: How far uniform's loss at a neighbour of its best rate lies from that at the best
            rate, at most, in tuning; infinite where it diverged there, ``None`` where nothing is
            known.
        ranks: Largest difference between two arms, each at its best rate.
        sentence: The same in words.
    """

    rate: float | None
    ranks: float | None
    sentence: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer.

    Attributes:
        code: ``no_difference`` (use uniform), ``better`` (an arm beats uniform, and random ranks
            are not shown to do as well), ``any_uneven`` (one beats uniform, random ranks beat it
            too, and the two are not told apart) or ``undecided``.
        winner: The arm to use; uniform where none can be named.
        sentence: The same in words.
        notes: What else one must know to read it.
    """

    code: Code
    winner: str
    sentence: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Judgement:
    """All that an evaluation found.

    Attributes:
        verdict: The answer.
        arms: In the order of the settings.
        differences: To uniform and to random, for every metric.
        levers: The learning rate against the ranks.
        n_runs: Runs that were judged.
        seconds: Of all of them together.
        settings: What was trained, as plain data.
    """

    verdict: Verdict
    arms: tuple[ArmSummary, ...]
    differences: tuple[Difference, ...]
    levers: Levers
    n_runs: int
    seconds: float
    settings: Mapping[str, Any]

    def difference(self, arm: str, reference: str, metric: str) -> Difference | None:
        """One difference, if it is known."""
        wanted = (arm, reference, metric)
        return next(
            (d for d in self.differences if (d.arm, d.reference, d.metric) == wanted), None
        )

    def to_json(self) -> dict[str, Any]:
        """The same as plain data; what is no number is null."""
        data: dict[str, Any] = _plain(self)
        return data


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
