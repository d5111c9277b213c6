"""Results by what they were made from, the names pinned to them, and how far two lie apart."""

from datetime import datetime
from typing import Any, Literal

from pydantic import ConfigDict, Field

from fimlora_contract.base import AnswerModel
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


class RankChange(AnswerModel):
    """One target module in two results; a rank is 0 where it is not targeted."""

    name: str
    rank_a: int
    rank_b: int
    change: int = Field(description="`rank_b - rank_a`.")


class RankDrift(AnswerModel):
    """How far the ranks of two results lie apart."""

    n_modules: int
    n_changed: int
    ranks_a: int
    ranks_b: int
    parameters_a: int
    parameters_b: int
    moved: int = Field(description="Sum of all changes, without their signs.")
    largest_change: int
    share_moved: float = Field(
        description="`moved` over the ranks of both results: 0 when equal, 1 when disjoint."
    )


class RankDiff(AnswerModel):
    """Rank drift between the results of two jobs, per module and in sum."""

    object: Literal["rank_diff"] = "rank_diff"
    job_a: str
    job_b: str
    drift: RankDrift
    modules: list[RankChange] = Field(description="Those that differ, largest change first.")
