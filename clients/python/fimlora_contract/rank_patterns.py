"""Results by what they were made from, the names pinned to them, and how far two lie apart."""

from datetime import datetime
from typing import Any, Literal

from pydantic import ConfigDict, Field

from fimlora_contract.base import AnswerModel, is_unknown
from fimlora_contract.rank_maps import RankMap


class RankPattern(AnswerModel):
    """A result as CI and clusters fetch it; equal digests are equal answers for ever."""

    object: Literal["rank_pattern"] = "rank_pattern"
    digest: str = Field(description="Content address of the result.")
    adapter_config: dict[str, Any]
    rank_map: RankMap


class PeftConfig(AnswerModel):
    """An ``adapter_config.json``: what PEFT's LoraConfig or AdaLoraConfig is made from.

    PEFT documents the fields; those named here are always there.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    peft_type: Literal["LORA", "ADALORA"]
    base_model_name_or_path: str | None
    task_type: str | None
    target_modules: list[str] | str
    lora_alpha: float


class PinEntry(AnswerModel):
    """A result that a pin stands for, or stood for."""

    digest: str
    pinned_at: datetime
    replaced: str | None = Field(
        None, description="What it stood for before; null for the oldest."
    )
    pinned_by: str = Field("", description="Id of the API key that was used; empty without.")


class Pin(AnswerModel):
    """A name and tag that stand for a result; the newest entry of the history counts."""

    object: Literal["pin"] = "pin"
    name: str
    tag: str
    digest: str
    owner: str = Field(
        "", description="The tenant whose it is; empty for one that all tenants share."
    )
    history: list[PinEntry] = Field(description="Newest first.")


class ListedPin(AnswerModel):
    """What a name and tag stand for now; the pin's own address has what they stood for."""

    object: Literal["pin"] = "pin"
    name: str
    tag: str
    digest: str
    owner: str = Field(
        "", description="The tenant whose it is; empty for one that all tenants share."
    )
    pinned_at: datetime
    pinned_by: str = Field("", description="Id of the API key that was used; empty without.")


class PinPage(AnswerModel):
    """Pins by name; pass ``next_cursor`` as ``cursor`` for the following page."""

    object: Literal["list"] = "list"
    data: list[ListedPin]
    next_cursor: str | None = None


class RankChange(AnswerModel):
    """One target module in two results; a rank is 0 where it is not targeted."""

    name: str
    rank_a: int
    rank_b: int
    change: int = Field(description="`rank_b - rank_a`.")
    experts_a: list[int] | None = Field(
        None,
        description="Of fused experts those that train, where other ones train in the other "
        "result; left out where the same ones do.",
        exclude_if=is_unknown,
    )
    experts_b: list[int] | None = Field(None, exclude_if=is_unknown)


class RankDrift(AnswerModel):
    """How far the ranks of two results lie apart."""

    n_modules: int
    n_changed: int = Field(description="How many have other ranks.")
    n_other_experts: int = Field(0, description="Of how many other experts train.")
    ranks_a: int
    ranks_b: int
    parameters_a: int
    parameters_b: int
    moved: int = Field(description="Sum of all changes, without their signs.")
    largest_change: int
    share_moved: float = Field(
        description="`moved` over the ranks of both results: 0 when equal, 1 when disjoint."
    )
    rank_noise: float | None = Field(
        None,
        description="What `share_moved` would be at most if the two were planned from other rows "
        "of the same data, as the results themselves tell; null where they do not.",
    )
    share_of_scores_moved: float | None = Field(
        None,
        description="The same share of the scores, each result's taken as shares of their sum; "
        "null where a result goes by no score.",
    )
    score_noise: float | None = Field(
        None, description="What other rows would make of `share_of_scores_moved` at most."
    )
    share_of_experts_moved: float | None = Field(
        None,
        description="Of fused experts those that train in one of the two only, over those that "
        "train in either, counted twice where they train in both: 0 when the same ones train, 1 "
        "when no expert trains in both; null where all train in both.",
    )
    remarks: list[str] = Field(
        default=[],
        description="What the two differ in besides, so that drift has that for a reason.",
    )


class JudgedDrift(AnswerModel):
    """Whether the drift of one kind is more than is allowed, and more than noise."""

    of: Literal["ranks", "scores", "experts"]
    moved: float | None = Field(
        description="Null where a result goes by no score, or no experts are selected."
    )
    noise: float | None = Field(
        description="What other rows would move at most; null: unknown."
    )
    limit: float
    fails: bool = Field(description="Whether `moved` is above both `limit` and `noise`.")
    sentence: str


class DriftJudgement(AnswerModel):
    """What a gate says of a drift."""

    fails: bool
    sentence: str
    kinds: list[JudgedDrift]


class RankDiff(AnswerModel):
    """Rank drift between the results of two jobs, per module and in sum."""

    object: Literal["rank_diff"] = "rank_diff"
    job_a: str
    job_b: str
    drift: RankDrift
    modules: list[RankChange] = Field(
        description="Those whose ranks or experts differ, largest change first."
    )
