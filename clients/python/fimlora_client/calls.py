"""One HTTP exchange as data: what to send and what came back.

Both clients send the same calls; nothing here opens a connection.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from fimlora_client.errors import ApiError, error_of
from fimlora_contract.problems import Problem
from fimlora_contract.service import Health

Model = TypeVar("Model", bound=BaseModel)
JSON = {"content-type": "application/json"}
NOT_MODIFIED = 304
TITLE_LENGTH = 200
Params = dict[str, str | Sequence[str]]


@dataclass(frozen=True, slots=True)
class Call:
    """A request to send.

    Attributes:
        method: HTTP method.
        path: Below the base URL, beginning with a slash.
        params: Query parameters.
        headers: Headers of this request alone.
        content: The body, or the file that is the body, read in pieces.
        wait_s: How long the service may hold the request before it answers.
        save_to: Where the body of a good answer goes, instead of into memory.
        is_final: Whether any answer will do, so that there is no second try.
        is_poll: Whether its caller asks again anyhow, and so waits out a rate limit itself.
    """

    method: str
    path: str
    params: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | Path | None = None
    wait_s: float = 0.0
    save_to: Path | None = None
    is_final: bool = False
    is_poll: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def is_good(self) -> bool:
        """Whether the service did what was asked."""
        return 200 <= self.status < 300

    @property
    def is_unchanged(self) -> bool:
        """Whether the copy that the request named is still right."""
        return self.status == NOT_MODIFIED


def route(*parts: str) -> str:
    """A path of these parts, each percent-encoded; an empty one would be another route."""
    return "".join(f"/{quote(part, safe='') or '-'}" for part in parts)


def given(**options: str | float | Sequence[str] | None) -> Params:
    """Query parameters: those that were given, as text; a list is one for each of it."""
    return {
        name: f"{value:g}" if isinstance(value, int | float) else value
        for name, value in options.items()
        if value is not None
    }


def json_body(value: Any) -> bytes:
    """A body of JSON; a number that JSON cannot carry is an error here, not there."""
    return json.dumps(value, allow_nan=False).encode()


def read_answer(answer: Answer, model: type[Model]) -> Model:
    """The body of a good answer as its model.

    Raises:
        ApiError: The answer is a problem, or not one of this service.
    """
    raise_for_problem(answer)
    try:
        return model.model_validate_json(answer.content)
    except ValidationError as error:
        raise ApiError(_foreign(answer, f"is not a {model.__name__}")) from error


def read_health(answer: Answer) -> Health:
    """How the service is; it answers 503 with the same body when it is not well."""
    if answer.status == 503 and b'"checks"' in answer.content:
        return Health.model_validate_json(answer.content)
    return read_answer(answer, Health)


def raise_for_problem(answer: Answer) -> None:
    """Raise the exception that the answer stands for, if it is not a good one."""
    if answer.is_good:
        return
    try:
        problem = Problem.model_validate_json(answer.content)
    except ValidationError:
        raise ApiError(_foreign(answer, "is not a problem document")) from None
    request_id = problem.request_id or answer.headers.get("x-request-id")
    raise error_of(problem.model_copy(update={"request_id": request_id}))


def said_in(answer: Answer) -> tuple[str, str]:
    """Code and sentence of a refusal, whoever it is from."""
    try:
        problem = Problem.model_validate_json(answer.content)
    except ValidationError:
        problem = _foreign(answer, "is not a problem document")
    return problem.code, problem.detail


def _foreign(answer: Answer, what: str) -> Problem:
    start = answer.content[:TITLE_LENGTH].decode(errors="replace").strip()
    return Problem(
        type="about:blank",
        title="The answer is not one of fimlora",
        status=answer.status,
        code=f"http_{answer.status}",
        detail=f"the answer (status {answer.status}) {what}: {start!r}",
        next_step="Check that FIMLORA_URL is the address of a fimlora service.",
        instance=None,
        errors=[],
        request_id=answer.headers.get("x-request-id"),
    )
