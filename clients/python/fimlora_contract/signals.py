"""How much of a plan follows from the task, as a rank map says it."""

from typing import Annotated

from pydantic import Field

from fimlora_contract.base import AnswerModel

Share = Annotated[float, Field(ge=0, le=1)]


class Signal(AnswerModel):
    """How far a plan moves when labels mean nothing, against how far it moves anyway.

    Shares are of the ranks, or of the parameters where the budget counts these.
    """

    verdict: str = Field(
        description="task: more than twice as far as other rows and chance move it; weak: further "
        "than these, but not twice as far; none: no further than chance may, or nothing is left "
        "of the score, or the method looks at no label; unknown: the sentence says why."
    )
    sentence: str
    moved_by_labels: Share | None = Field(
        None, description="Share of the plan that lies elsewhere under labels of other rows."
    )
    moved_by_rows: Share | None = Field(
        None, description="Share that other rows of the same data are expected to move."
    )
    moved_between_halves: Share | None = Field(
        None, description="Share that lies elsewhere between plans of two halves of the rows."
    )
    moved_by_chance: Share | None = Field(
        None,
        description="The furthest that plans were apart when it was drawn which of a row's two "
        "labels is the true one; null where no value per example tells.",
    )
    label_correlation: float | None = Field(
        None, description="Spearman's, of the scores with those under labels of other rows."
    )
    half_correlation: float | None = Field(
        None, description="Spearman's, of the scores of the two halves."
    )
    n_targets: int = Field(0, description="Labels, or tokens to predict.")
    n_changed: int = Field(0, description="How many of these could become another one.")
    null_ranks: list[int] = Field(
        default=[],
        description="Ranks under labels of other rows, in the order of the modules.",
    )
    half_ranks: list[list[int]] = Field(
        default=[], description="Ranks of the two halves, in the order of the modules."
    )
