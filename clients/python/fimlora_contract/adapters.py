"""Trained adapters: uploaded, made of others, or registered; and what is asked of them."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fimlora_contract.artifacts import Artifact
from fimlora_contract.base import AnswerModel, RequestModel
from fimlora_contract.budgets import AnyBudget, Budget

ADAPTER_ID = r"^ad_[0-9a-f]{32}$"
Layout = Literal["B", "C"]


class Adapter(AnswerModel):
    """A trained adapter; the id of one that is kept here is its content and its owner."""

    id: str
    object: Literal["adapter"] = "adapter"
    source: Literal["upload", "derived", "local"] = Field(
        description="Uploaded, made here of another one, or registered by the operator."
    )
    peft_type: str = Field(
        default="LORA", description="LORA, or ADALORA, which only convert takes."
    )
    base_model: str | None = None
    task_type: str | None = None
    n_modules: int = 0
    rank_min: int = 0
    rank_max: int = 0
    parameters: int = Field(default=0, description="Of all A and B.")
    size: int = Field(description="Bytes of the file of weights.")
    digest: str | None = Field(default=None, description="Null for a registered adapter.")
    derived_from: str | None = Field(
        default=None, description="Id of the adapter that it was made of."
    )
    created_at: datetime | None = None
    owner: str = Field(
        default="",
        description="The tenant that it belongs to; empty for the operator, or without keys.",
    )
    usable: bool = True
    problem: str | None = Field(default=None, description="Why it is not usable.")
    files: list[Artifact] = Field(default=[], description="What can be fetched of it.")


class AdapterPage(AnswerModel):
    """All trained adapters the service knows."""

    object: Literal["list"] = "list"
    data: list[Adapter]


class TruncationRequest(RequestModel):
    """Cut a trained adapter to a budget, or to what keeps a share of its energy."""

    budget: Annotated[
        AnyBudget | None,
        Field(
            description="A mean rank, one word such as 8M or 64MB, or an object with rank, "
            "parameters or bytes."
        ),
    ] = None
    energy: Annotated[
        Annotated[float, Field(gt=0, le=1)] | None,
        Field(
            description="In place of a budget: the share of all squared singular values to keep, as "
            "far as r_max allows."
        ),
    ] = None
    r_min: Annotated[
        int, Field(ge=0, le=4096, description="Lowest rank; 0 lets modules go.")
    ] = 1
    r_max: Annotated[int, Field(ge=1, le=8192)] | None = None
    multiple_of: Annotated[int, Field(ge=1, le=256)] = 1
    layout: Layout = "B"

    @model_validator(mode="after")
    def _one_aim(self) -> Self:
        if (self.budget is None) == (self.energy is None):
            raise ValueError("give a budget or the energy to keep, exactly one of both")
        if isinstance(self.budget, Budget) and self.budget.fraction is not None:
            raise ValueError(
                "budget.fraction is of a base model, which is not at hand here; give rank, "
                "parameters or bytes"
            )
        if self.energy is not None and self.multiple_of != 1:
            raise ValueError("multiple_of needs a budget; energy knows no multiples")
        if self.r_max is not None and self.r_min > self.r_max:
            raise ValueError(f"r_min={self.r_min} is above r_max={self.r_max}")
        return self


class AuditRequest(RequestModel):
    """Ask what a trained adapter uses of its ranks."""

    job_id: Annotated[
        Annotated[str, Field(min_length=1, max_length=64)] | None,
        Field(
            description="A job that succeeded: its plan is what the adapter is held against."
        ),
    ] = None


class ConversionRequest(RequestModel):
    """Ask for a trained adapter in another layout."""

    layout: Layout = "B"


class TruncatedModule(AnswerModel):
    """What became of a module."""

    name: str
    rank_before: int
    rank: int
    error: float = Field(
        description="Relative Frobenius norm of the change, from singular values."
    )


class Truncation(AnswerModel):
    """An adapter that was cut, and how far its function is from the trained one."""

    object: Literal["truncation"] = "truncation"
    adapter: Adapter
    sentence: str
    error: float = Field(
        description="Relative Frobenius norm of the change of all updates, from singular values."
    )
    error_written: float = Field(description="The same as measured on the written file.")
    error_uniform: float = Field(
        description="The same where one rank for all spends the budget."
    )
    ranks: int
    parameters_before: int
    parameters: int
    bytes_before: int
    bytes: int
    n_untouched: int = Field(description="Modules whose A and B stayed as they were.")
    energy_kept: float | None = Field(
        default=None,
        description="Share of the sum of all squared singular values that is kept.",
    )
    energy_asked: float | None = Field(
        default=None, description="The share that was asked for, which r_max may keep it from."
    )
    scale: float
    modules: list[TruncatedModule]


class ModuleUse(AnswerModel):
    """What a module uses of its rank."""

    name: str
    rank: int
    planned: int | None = None
    scale: float
    numerical_rank: int = Field(description="Singular values above a millionth of the largest.")
    effective_rank: float = Field(description="Exponential of the entropy of its energy.")
    rank_90: int = Field(description="Fewest ranks that keep 90 % of its energy.")
    rank_95: int
    rank_99: int
    norm: float = Field(description="Frobenius norm of its update.")
    largest: float = Field(description="Largest singular value of its update.")
    parameters: int


class Audit(AnswerModel):
    """What an adapter uses of its ranks."""

    object: Literal["audit"] = "audit"
    adapter_id: str
    job_id: str | None = None
    sentence: str
    parameters: int
    unused: float = Field(
        description="Share of parameters in ranks that no module needs for 99 % of its energy."
    )
    empty: float = Field(description="Share of parameters beyond the numerical rank.")
    deviations: list[str] = Field(
        default=[],
        description="Where the adapter is not what the plan says, in a sentence each.",
    )
    modules: list[ModuleUse]


class Conversion(AnswerModel):
    """An adapter in another layout."""

    object: Literal["conversion"] = "conversion"
    adapter: Adapter
    sentence: str
    layout: Layout
    width: int | None = Field(default=None, description="The common rank of layout C.")
    ranks: dict[str, int] = Field(description="Rank per module, without padding.")
    error: float = Field(description="Relative Frobenius norm of the change; 0 is none at all.")
    bytes_before: int
    bytes: int
    left_out: dict[str, Any] = Field(
        default={}, description="Modules that have no LoRA any more, with the reason."
    )
