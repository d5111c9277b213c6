"""How sure the ranks of a plan are, and what to mind before training by it."""

from pydantic import Field

from fimlora_contract.base import AnswerModel, is_unknown


class Confidence(AnswerModel):
    """What drawing other rows would do to a plan; lists are in the order of the modules.

    Examples are drawn again with replacement, and each draw is planned like the plan.
    """

    n_examples: int
    n_resamples: int
    level: float = Field(description="Share of the draws that an interval of ranks holds.")
    expected_overlap: float = Field(
        description="Share of the ranks (of the parameters, at a budget in these) that a plan "
        "from as many other rows is expected to have where this one has them."
    )
    rank_noise: float | None = Field(
        None,
        exclude_if=is_unknown,
        description="Share of the ranks that lie elsewhere between plans of two such draws, at "
        "most, in `level` of all pairs; null in rank maps of before it was recorded.",
    )
    score_noise: float | None = Field(
        None,
        exclude_if=is_unknown,
        description="The same of the scores, each as a share of their sum.",
    )
    n_unresolved: int = Field(description="Modules whose interval holds more than one rank.")
    standard_errors: list[float] = Field(description="Of the scores.")
    lowest_ranks: list[int] = Field(description="Lower ends of the intervals.")
    highest_ranks: list[int] = Field(description="Upper ends of the intervals.")
    shares: list[float] = Field(description="Share of the draws that give the plan's rank.")


# Of warnings about the weights that training begins with, which stand before all else.
START_CODES = frozenset({"base_changes", "starts_moved", "does_not_train", "experts_selected"})


class PlanWarning(AnswerModel):
    """Something to mind, with the number it is about and the next step."""

    code: str = Field(
        description="few_examples, one_class, missing_classes, head_saw_measured, seed_sensitive, "
        "more_than_whole, nearly_uniform, at_bounds, unresolved, confidence_unknown, not_stable or "
        "tied_weight; of initial weights base_changes, starts_moved, does_not_train or "
        "experts_selected, which come first; there may be others."
    )
    message: str
