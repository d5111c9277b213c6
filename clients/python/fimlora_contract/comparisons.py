"""Plans of several methods side by side, as answers show them; nothing was trained."""

from typing import Any, Literal

from pydantic import Field

from fimlora_contract.artifacts import JobResult
from fimlora_contract.base import AnswerModel, is_unknown
from fimlora_contract.signals import Signal


class ComparedMethod(AnswerModel):
    """What the plan of one method spends, and what is known of it."""

    method: str
    rule: str
    summary: str = Field(description="What it goes by.")
    r_min: int
    r_max: int
    ranks: int
    parameters: int
    signal: Signal | None = Field(
        None, description="How much of the plan follows from the task, if that was measured."
    )


class Likeness(AnswerModel):
    """How alike the plans of two methods are."""

    a: str
    b: str
    score_correlation: float | None = Field(
        description="Spearman's; null where a method goes by no score, or by one for all modules."
    )
    rank_correlation: float | None = Field(
        description="Spearman's; null where a plan has one rank for all modules."
    )
    overlap: float = Field(
        description="Share of the ranks that lie in the same place; of the parameters, at a "
        "budget in these."
    )


class ComparedModule(AnswerModel):
    """What each method makes of a module."""

    name: str
    layer: int | None
    kind: str
    d_in: int
    d_out: int
    scores: dict[str, float] = Field(description="By method; controls have none.")
    ranks: dict[str, int] = Field(description="By method.")


class ExpertsSpending(AnswerModel):
    """What the plan of one method spends on a selection of experts."""

    method: str
    ranks: int
    parameters: int


class ComparedExperts(AnswerModel):
    """One selection of experts, and what it has of what all experts have."""

    select: str
    share: float | None = None
    coverage: float | None = None
    coverage_of: str | None = Field(
        None, description="Of random ones: what has that coverage, of which these are as many."
    )
    seed: int | None = Field(None, description="Of random ones.")
    experts: int = Field(description="Over all layers.")
    selected: int
    tokens: float | None = Field(
        None, description="Share of the routed tokens that the selected see, if it was counted."
    )
    fisher: float | None = Field(
        description="Their share of the experts' Fisher information, if it was measured."
    )
    shared: int = Field(description="How many of them the selection asked for has as well.")
    layers: dict[str, list[str]] = Field(
        description="The selected ones, by where the experts of a layer are: numbers of fused ones, "
        "names of others."
    )
    methods: list[ExpertsSpending]


class Comparison(AnswerModel):
    """Plans of several methods from one set of passes: what ``compare.json`` holds."""

    format: str
    budget: dict[str, Any]
    methods: list[ComparedMethod]
    pairs: list[Likeness]
    left_out: dict[str, str] = Field(
        description="Methods that the statistics cannot give, with the reason in a sentence, if "
        "all were asked for."
    )
    provenance: dict[str, Any] = Field(description="Facts about the measurement.")
    modules: list[ComparedModule]
    experts: list[ComparedExperts] | None = Field(
        None,
        exclude_if=is_unknown,
        description="Where experts are selected: that selection, then as many random ones in each "
        "layer at the same budget, unless it is random itself.",
    )


class JobComparison(Comparison):
    """A comparison from the statistics of a job; nothing was queued and nothing is stored."""

    object: Literal["comparison"] = "comparison"
    job_id: str = Field(description="The job whose statistics were used.")
    picture: str | None = Field(None, description="As SVG, if it was asked for.")


class ComparisonResult(JobResult):
    """What a succeeded comparison delivers."""

    comparison: Comparison
