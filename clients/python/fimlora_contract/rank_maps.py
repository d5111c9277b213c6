"""A rank plan as data: what ``rank_map.json`` holds."""

from typing import Any

from pydantic import Field

from fimlora_contract.base import AnswerModel, is_unknown
from fimlora_contract.charts.notebook import plan_bundle, shown_bounds
from fimlora_contract.confidence import Confidence, PlanWarning
from fimlora_contract.signals import Signal


class RankMapModule(AnswerModel):
    """One target module of a rank map."""

    name: str
    d_in: int
    d_out: int
    fan_in_fan_out: bool = False
    n_experts: int | None = Field(
        None,
        description="Of fused experts, how many matrices the row stands for.",
        exclude_if=is_unknown,
    )
    is_embedding: bool | None = Field(
        None,
        description="True of a table of `d_in` rows, left out of all else.",
        exclude_if=is_unknown,
    )
    family: str | None = Field(
        None,
        description="What it is part of, in a model of several towers or several kinds of mixer: "
        "the tower (`language`, `vision`, `audio`, `connector`) and, where that mixes sequences in "
        "several ways, the kind after a dot (`attention`, `linear_attention`, `ssm`, `conv`, `mlp`, "
        "`experts`). Left out where the model is one family.",
        exclude_if=is_unknown,
    )
    experts: list[int] | None = Field(
        None,
        description="Of fused experts, the ones that train; left out where all do. parameters "
        "counts these alone.",
        exclude_if=is_unknown,
    )
    layer: int | None
    kind: str
    score: float
    rank: int
    alpha: int | float
    parameters: int


class WrittenAdapter(AnswerModel):
    """What the adapter of a plan holds, as written."""

    layout: str
    width: int | None = Field(
        None, description="The common rank that layout C pads to; null in layout B."
    )
    trainable_parameters: int = Field(
        description="Of all LoRA matrices, with their padding and those of experts that are not "
        "selected, as PEFT counts them; without a trained head."
    )


class Share(AnswerModel):
    """What one type of modules, one range of layers, or one family gets."""

    name: str
    modules: int
    ranks: int
    parameters: int
    share_of_ranks: float
    share_of_parameters: float
    uniform_share_of_ranks: float | None = None
    uniform_share_of_parameters: float | None = None


class FamilyShare(Share):
    """What one family gets, and its share of the scores."""

    share_of_scores: float | None = None


class Shares(AnswerModel):
    """Where ranks and parameters lie, beside those of uniform ranks."""

    types: list[Share]
    depths: list[Share]
    families: list[FamilyShare] | None = Field(
        None,
        exclude_if=is_unknown,
        description="By family; left out where the model is one.",
    )


class RankMap(AnswerModel):
    """The plan as data: the same object that ``rank_map.json`` holds."""

    format: str
    budget: dict[str, Any]
    method: str | None = Field(
        None, description="What made the scores; null in rank maps of before it was recorded."
    )
    rule: str
    r_min: int
    r_max: int
    constraints: dict[str, Any] = Field(
        default={},
        description="What the ranks keep to besides, as do those of the controls: multiples or a "
        "menu, ties, rules per type, a server's highest rank.",
    )
    scale: int | float = Field(
        description="Alpha over rank, the same for all modules; with another scaling than "
        "constant, what the scores are stated at."
    )
    scaling: str = Field(
        "constant",
        description="How alpha follows from rank: constant; alpha, one for all; or rslora, one for "
        "all that is divided by the root of the rank.",
    )
    lora_alpha: int | float | None = Field(
        None, description="The one alpha of all modules, unless the scale is constant."
    )
    spent: dict[str, int]
    shares: Shares | None = Field(
        None,
        exclude_if=is_unknown,
        description="Where ranks and parameters lie, by type, by range of layers and by family.",
    )
    controls: dict[str, dict[str, Any]]
    provenance: dict[str, Any]
    adapter: WrittenAdapter | None = Field(
        None, description="Null in rank maps of before it was recorded."
    )
    not_targeted: dict[str, str] = Field(
        default={},
        description="What the choice of targets means but is not one of them, by name, with the "
        "reason in a sentence.",
    )
    signal: Signal | None = Field(
        None,
        exclude_if=is_unknown,
        description="How much of the plan follows from the task, if that was asked.",
    )
    confidence: Confidence | None = Field(
        None, exclude_if=is_unknown, description="How sure the ranks are, if that is known."
    )
    warnings: list[PlanWarning] = Field(
        default=[], description="What to mind before training by the plan."
    )
    modules: list[RankMapModule]

    @property
    def bounds(self) -> tuple[int, int]:
        """The lowest and the highest rank as far as some module can have them, to be shown."""
        return shown_bounds(self.model_dump(include={"r_min", "r_max", "modules"}))

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """What a notebook shows."""
        return plan_bundle(self.model_dump(mode="json"))
