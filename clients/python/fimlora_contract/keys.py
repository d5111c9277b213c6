"""API keys: who may do what, and for which tenant."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from fimlora_contract.base import AnswerModel, RequestModel

TENANT = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
KEY_NAME = r"^[A-Za-z0-9][A-Za-z0-9 ._@-]{0,63}$"
KEY_ID = r"^[0-9a-f]{16}$"
PATTERN_MEANINGS = {
    KEY_NAME: "must start with a letter or digit, then letters, digits, spaces, '.', '_', '@' and "
    "'-', 64 at most",
    TENANT: "must be lower-case letters, digits and '-', not at an end, 63 at most",
}
LONGEST_GRACE_S = 30 * 24 * 3600
LONGEST_LIFE_S = 10 * 365 * 24 * 3600


class Scope(StrEnum):
    """What a key allows; admin includes all others."""

    READ = "read"
    SUBMIT = "submit"
    CANCEL = "cancel"
    ADMIN = "admin"


ORDINARY = (Scope.READ, Scope.SUBMIT, Scope.CANCEL)


class KeyRequest(RequestModel):
    """A key to make."""

    name: Annotated[str, Field(pattern=KEY_NAME)] = Field(
        description="Whose it is, or what for.", examples=["ci"]
    )
    # As text in a body; the framework hands it over as Python, where an enum would be due.
    scopes: list[Annotated[Scope, Field(strict=False)]] = Field(
        list(ORDINARY),
        min_length=1,
        max_length=4,
        description="What it allows; admin includes all others.",
    )
    tenant: Annotated[str, Field(pattern=TENANT)] | None = Field(
        None,
        description="Whose jobs and data it reaches; left out, those of the key that makes it.",
    )
    expires_in_s: Annotated[int, Field(gt=0, le=LONGEST_LIFE_S)] | None = Field(
        None, description="Seconds until it is refused; left out, it does not expire."
    )


class RotationRequest(RequestModel):
    """A new secret for a key."""

    grace_s: int = Field(
        3600,
        ge=0,
        le=LONGEST_GRACE_S,
        description="Seconds for which the secret before is good as well.",
    )


class ApiKey(AnswerModel):
    """A key as it is listed; the secret is told once, when it is made."""

    object: Literal["api_key"] = "api_key"
    id: str
    name: str
    tenant: str = Field(description="Empty for the operator's own keys.")
    scopes: list[Scope]
    created_at: datetime
    expires_at: datetime | None = Field(None, description="Null if it does not expire.")
    last_used_at: datetime | None = Field(
        None, description="Within a minute; null before the first use."
    )
    rotated_until: datetime | None = Field(
        None, description="Until when the secret before the last rotation is good as well."
    )


class NewApiKey(ApiKey):
    """A key with its secret, which is never shown again."""

    key: str = Field(description="What goes after `Authorization: Bearer`.")


class ApiKeyPage(AnswerModel):
    """Keys by the time they were made."""

    object: Literal["list"] = "list"
    data: list[ApiKey]
