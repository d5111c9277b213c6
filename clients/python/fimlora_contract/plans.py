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


class PlanDraft(AnswerModel):
    """The ranks of another plan alone: what sliders show while they move."""

    object: Literal["plan_draft"] = "plan_draft"
    job_id: str = Field(description="The job whose statistics were used.")
    rank_map: RankMap = Field(
        description="The plan's, without what takes longest: signal, confidence, warnings and "
        "shares."
    )
