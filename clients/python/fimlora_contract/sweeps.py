"""Plans of one job under other aggregations, numbers of batches and floors, side by side."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from fimlora_contract.allocations import Allocation
from fimlora_contract.base import AnswerModel, RequestModel
from fimlora_contract.budgets import AnyBudget
from fimlora_contract.calibrations import MOST_BATCHES
from fimlora_contract.request_checks import check_all_experts, check_mean_rank

MOST_ROWS = 128
AggregationName = Literal["mean", "max", "l2"]


def check_swept(allocation: Allocation) -> Allocation:
    """Refuse what a sweep varies by itself, and a method that it does not go by."""
    plain = Allocation()
    for name in ("method", "aggregation", "r_min"):
        if getattr(allocation, name) != getattr(plain, name):
            instead = {
                "method": "a sweep goes by fim",
                "aggregation": "give it in aggregations",
            }
            raise ValueError(
                f"allocation.{name} has no meaning here: {instead.get(name, f'give it in {name}')}"
            )
    return check_all_experts(allocation)


def check_distinct(values: list[Any] | None) -> list[Any] | None:
    """Refuse an empty list, and one that names something twice."""
    if values is not None and (not values or len(set(values)) < len(values)):
        raise ValueError(f"{values}: at least one, each once")
    return values


class SweepRequest(RequestModel):
    """Ask how plans by Fisher information change with what the paper varies.

    Nothing is measured: a job that has succeeded is asked. ``allocation`` is shared by all plans.
    """

    budget: AnyBudget
    aggregations: Annotated[
        list[AggregationName],
        AfterValidator(check_distinct),
        Field(max_length=3),
    ] = ["mean", "max", "l2"]
    n_batches: Annotated[
        Annotated[
            list[Annotated[int, Field(ge=1, le=MOST_BATCHES)]], Field(max_length=MOST_ROWS)
        ]
        | None,
        AfterValidator(check_distinct),
        Field(
            description="Plan from the first so many batches of what was measured; 1, 2, 4 ... and "
            "all by default. Fewer than all are known for aggregation mean alone."
        ),
    ] = None
    r_min: Annotated[
        Annotated[list[Annotated[int, Field(ge=1, le=4096)]], Field(max_length=MOST_ROWS)]
        | None,
        AfterValidator(check_distinct),
        Field(description="Floors; by default 1, half of the default floor, and that."),
    ] = None
    allocation: Annotated[
        Allocation,
        AfterValidator(check_swept),
        Field(description="How the budget is shared: the same for all plans."),
    ] = Allocation()
    signal: Annotated[
        bool,
        Field(description="Whether to state the signal of each plan, where it was measured."),
    ] = True

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        n_rows = len(self.aggregations) * len(self.n_batches or [0]) * len(self.r_min or [0])
        if n_rows > MOST_ROWS:
            raise ValueError(
                f"{n_rows} plans were asked for; a sweep has {MOST_ROWS} at most: give fewer "
                "aggregations, n_batches or r_min"
            )
        check_mean_rank(self.budget, self.allocation)
        return self


class SweepRow(AnswerModel):
    """One plan of a sweep, or why there is none."""

    aggregation: str
    n_batches: int
    r_min: int
    r_max: int | None = Field(description="Null without a plan, as is all that follows.")
    moved: int | None = Field(
        description="Ranks that lie elsewhere than in the plan of all batches with this "
        "aggregation and floor."
    )
    overlap: float | None = Field(
        description="Share of the ranks that lie where that plan has them; of the parameters, at a "
        "budget in these."
    )
    overlap_with_default: float | None = Field(
        description="Share that lie where the plan of all batches by the mean, with the default "
        "floor, has them."
    )
    at_floor: float | None = Field(description="Share of modules with the lowest rank.")
    at_ceiling: float | None = Field(description="Share of modules with the highest rank.")
    signal: str | None = Field(
        description="Verdict of the plan's signal, where it was measured."
    )
    moved_by_labels: float | None = Field(description="Share of the plan that labels move.")
    unknown: str | None = Field(description="Why there is no plan, in a sentence.")


class Sweep(AnswerModel):
    """Plans of one job under several settings; nothing was queued and nothing is stored."""

    object: Literal["sweep"] = "sweep"
    format: str
    job_id: str = Field(description="The job whose statistics were used.")
    budget: dict[str, Any]
    n_batches: int = Field(description="Batches that were measured.")
    n_examples: int
    default_r_min: int
    rows: list[SweepRow]
