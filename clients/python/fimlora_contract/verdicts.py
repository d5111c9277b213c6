"""What an evaluation found: arms, their differences, the levers, the verdict.

Numbers are null where there is none: a run that diverged has no loss, one seed has no spread.
"""

from typing import Any, Literal

from pydantic import Field

from fimlora_contract.artifacts import JobResult
from fimlora_contract.base import AnswerModel
from fimlora_contract.charts.notebook import evaluation_bundle


class Spread(AnswerModel):
    """Mean and standard deviation over the final seeds."""

    mean: float | None
    spread: float | None


class RateLoss(AnswerModel):
    """What the tuning runs of an arm at one learning rate came to."""

    rate: float
    loss: float | None = Field(description="Mean held-out loss; null if a run diverged.")
    n_diverged: int


class ArmSummary(AnswerModel):
    """What the runs of an arm came to."""

    name: str
    best_rate: float | None = Field(description="Null if it diverged at every rate.")
    rates: list[RateLoss] = Field(description="Every rate that was tried, ascending.")
    is_at_edge: bool = Field(description="Whether the best rate is the lowest or the highest.")
    n_final: int
    n_diverged: int = Field(description="Of the final runs.")
    adapter_parameters: tuple[int, int] = Field(description="Least and most over the runs.")
    trainable_parameters: int = Field(description="With a head that is trained along.")
    seconds: float | None = Field(description="Mean time of a final run.")
    metrics: dict[str, Spread] = Field(description="On the held-out rows, at the end.")
    curve: list[tuple[int, float | None, float | None]] = Field(
        description="Step, mean and standard deviation of the held-out loss."
    )


class Difference(AnswerModel):
    """A metric of an arm minus that of a control, over the seeds that both ran with."""

    arm: str
    reference: str
    metric: str
    mean: float | None
    low: float | None = Field(
        description="Of the 95 % interval; null where all pairs differ alike, which have none."
    )
    high: float | None
    p: float | None
    p_holm: float | None = Field(description="Adjusted for the number of arms compared.")
    n: int = Field(description="Pairs.")
    n_better: int = Field(description="Pairs in which the arm is better.")


class Levers(AnswerModel):
    """How much the learning rate moves the loss, and how much the ranks do."""

    rate: float | None = Field(
        description="Largest difference, in either direction, of uniform's tuning loss at a "
        "neighbour of its best rate; null if it diverged there, or nothing is known."
    )
    ranks: float | None = Field(description="Largest difference between two arms.")
    sentence: str


class Verdict(AnswerModel):
    """The answer to whether the ranks help on this task."""

    code: Literal["no_difference", "better", "any_uneven", "any_experts", "undecided"] = Field(
        description="better: an arm has less loss than uniform. any_uneven: random ranks have, "
        "too, and the two are not told apart. any_experts: so it is with random experts. undecided: uniform diverged, or seeds lack."
    )
    winner: str = Field(description="The arm to use; uniform where none can be named.")
    sentence: str
    notes: list[str] = Field(default=[], description="What one must know to read it.")


class EvaluationResult(JobResult):
    """What a succeeded evaluation found."""

    verdict: Verdict
    arms: list[ArmSummary]
    differences: list[Difference]
    levers: Levers
    n_runs: int
    seconds: float = Field(description="Of all runs together, on whatever worker.")
    settings: dict[str, Any] = Field(description="What was trained, and how.")
    data: dict[str, int] = Field(
        default={},
        description="Rows that runs could see and were tested on; rows left out, by reason.",
    )

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """What a notebook shows."""
        return evaluation_bundle(self.model_dump(mode="json"))
