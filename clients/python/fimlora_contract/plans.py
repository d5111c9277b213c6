"""Plans made anew from the statistics of a job: whole, or their ranks alone."""

from typing import Any, Literal

from pydantic import Field

from fimlora_contract.base import AnswerModel
from fimlora_contract.charts.notebook import plan_bundle
from fimlora_contract.rank_maps import RankMap


class Plan(AnswerModel):
    """Another plan from a job's statistics; nothing was queued and nothing is stored."""

    object: Literal["plan"] = "plan"
    job_id: str = Field(description="The job whose statistics were used.")
    digest: str = Field(description="Content address the plan would have as a result.")
    adapter_config: dict[str, Any]
    rank_map: RankMap

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """What a notebook shows."""
        return plan_bundle(self.rank_map.model_dump(mode="json"))


class DraftControl(AnswerModel):
    """What one control of a draft spends."""

    ranks: int
    parameters: int
    lowest: int = Field(description="The lowest rank that it gives a module.")
    highest: int


class PlanDraft(AnswerModel):
    """The ranks of another plan alone: what sliders show while they move.

    Modules are not named: lists hold one value for each of the job's own rank map, in its order.
    """

    object: Literal["plan_draft"] = "plan_draft"
    job_id: str = Field(description="The job whose statistics were used.")
    budget: dict[str, Any] = Field(description="As a rank map has it.")
    method: str | None
    rule: str
    r_min: int
    r_max: int
    spent: dict[str, int]
    ranks: list[int] = Field(description="Of each module.")
    scores: list[float] = Field(description="Of each module, as the plan's rank map has them.")
    uniform_ranks: list[int] | None = Field(
        description="Of each module under the control `uniform`; null of a plan without it."
    )
    controls: dict[str, DraftControl] = Field(description="By name, as a rank map has them.")
