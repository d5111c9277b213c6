"""The service itself: its health and its versions."""

from typing import Literal

from fimlora_contract.base import AnswerModel


class Health(AnswerModel):
    """Liveness or readiness; ``checks`` names each dependency."""

    status: Literal["ok", "degraded", "unavailable"]
    checks: dict[str, str] = {}


class Version(AnswerModel):
    """Versions that matter when results are compared."""

    fimlora: str
    api: Literal["v1"] = "v1"
