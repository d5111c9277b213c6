"""The service itself: its health and its versions."""

from typing import Literal

from pydantic import Field

from fimlora_contract.base import AnswerModel

Access = Literal["this_machine", "api_keys"]


class Health(AnswerModel):
    """Liveness or readiness; ``checks`` names each dependency."""

    status: Literal["ok", "degraded", "unavailable"]
    checks: dict[str, str] = {}
    access: Access | None = Field(
        default=None,
        description="Who is served: before there are API keys this machine only, then who has "
        "one. Null where nobody asked.",
    )
    durability: str | None = Field(
        default=None,
        description="Whether what is accepted is on the store's disk before it is answered; "
        "says why where that is not promised. Null where nobody asked.",
    )


class Version(AnswerModel):
    """Versions that matter when results are compared."""

    fimlora: str
    api: Literal["v1"] = "v1"
