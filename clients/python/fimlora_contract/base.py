"""The two strictness rules of the wire.

A request is strict: an unknown field, a string where a number is due, NaN or infinity is
an error, because a typo in a budget must not become a default. An answer is lenient: a
newer service may add fields that an older client ignores.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict


class RequestModel(BaseModel):
    """Base of everything a client sends."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class AnswerModel(BaseModel):
    """Base of everything the service answers."""

    model_config = ConfigDict(extra="ignore", frozen=True)


def is_unknown(value: object) -> bool:
    """Whether a file leaves a field out, so that what is shown is what the file holds."""
    return value is None


def json_kind(value: Any) -> str:
    """What a JSON value is, in words that do not repeat it."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list() | tuple():
            return "a list"
        case _:
            return "an object"
