"""Problem documents (RFC 9457): how every error leaves the service.

No answer repeats what the client sent, except the names of fields, and none carries a
traceback: users see a code and a sentence, operators find the rest in the log.
"""

import json
import logging
import time
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match

from fimlora_contract.field_errors import clip, field_error
from fimlora_contract.problems import PROBLEMS, Problem
from fimlora_jobs.allow_lists import NotAllowed
from fimlora_jobs.connection import is_away, why_away
from fimlora_jobs.disk import FULL, describe_refusal, refusal_in
from fimlora_jobs.hidden_paths import hide_paths
from fimlora_jobs.reader import JobMissing
from fimlora_jobs.results.store import ResultMissing, StorageUnavailable
from fimlora_jobs.retention import is_past
from fimlora_service import errors
from fimlora_service.http.headers import refuse_encoded
from fimlora_service.http.middleware import REQUEST_ID
from fimlora_service.http.security_headers import protect
from fimlora_service.http.threads import Threads, in_thread

MEDIA_TYPE = "application/problem+json"
MAX_ERRORS = 50
BY_STATUS: dict[int, type[errors.ServiceError]] = {
    400: errors.MalformedRequest,
    404: errors.RouteNotFound,
    405: errors.MethodNotAllowed,
    406: errors.NotAcceptable,
    408: errors.RequestTimeout,
    413: errors.PayloadTooLarge,
    415: errors.UnsupportedMediaType,
}

PROBLEM = "fimlora.problem"  # where a request's scope has the code it was refused with
logger = logging.getLogger(__name__)


def install_handlers(app: FastAPI) -> None:
    """Make problem documents of everything that can go wrong."""
    app.add_exception_handler(errors.ServiceError, on_service_error)
    app.add_exception_handler(NotAllowed, on_not_allowed)
    app.add_exception_handler(RequestValidationError, on_invalid_request)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(JobMissing, on_missing_job)
    app.add_exception_handler(ResultMissing, on_missing_result)
    app.add_exception_handler(StorageUnavailable, on_storage_error)
    app.add_exception_handler(RedisError, on_redis_error)
    app.add_exception_handler(OSError, on_os_error)
    app.add_exception_handler(ClientDisconnect, on_disconnect)
    app.add_exception_handler(Exception, on_unexpected)


def problem_response(request: Request, error: errors.ServiceError) -> Response:
    """The problem document of an error."""
    request_id = request.scope.get(REQUEST_ID)
    request.scope[PROBLEM] = error.code
    headers = error.headers | ({"X-Request-Id": request_id} if request_id else {})
    body = document_of(error, instance=clip(request.url.path), request_id=request_id)
    answer = Response(
        body, status_code=error.status_code, media_type=MEDIA_TYPE, headers=headers
    )
    protect(answer.headers)  # one of a fault is sent from outside all that surrounds a request
    return answer


def document_of(
    error: errors.ServiceError, *, instance: str | None = None, request_id: str | None = None
) -> bytes:
    """What an error looks like to a client."""
    kind = PROBLEMS[error.code]
    problem = Problem(
        type=f"/problems/{error.code}",
        title=kind.title,
        status=kind.status,
        code=error.code,
        detail=str(error),
        next_step=error.next_step,
        instance=instance,
        request_id=request_id,
        errors=[dict(e) for e in error.errors],
    )
    # ASCII: a lone surrogate in a field name of the client cannot be written as UTF-8.
    return json.dumps(problem.model_dump()).encode("ascii")


async def on_service_error(request: Request, exc: Exception) -> Response:
    """A refusal made on purpose."""
    assert isinstance(exc, errors.ServiceError)
    # What a library says of a file says where it lies.
    exc.args = (hide_paths(str(exc), root=request.state.settings.data_dir),)
    if isinstance(exc, errors.NoPattern):
        return await unless_rebuilding(request, exc)
    return problem_response(request, exc)


async def on_not_allowed(request: Request, exc: Exception) -> Response:
    """The operator's lists do not have what a request uses."""
    assert isinstance(exc, NotAllowed)
    kinds = (errors.ModelNotAllowed, errors.SourceNotAllowed)
    kind = next(each for each in kinds if each.code == exc.code)
    return problem_response(request, kind(str(exc)))


async def on_invalid_request(request: Request, exc: Exception) -> Response:
    """The body, the query or a header does not validate."""
    assert isinstance(exc, RequestValidationError)
    found = exc.errors()
    if any(e["type"] == "json_invalid" for e in found):
        where = found[0]["loc"][-1]
        return problem_response(
            request, errors.MalformedRequest(f"the body is not JSON from character {where} on")
        )
    if any(e["type"] == "missing" and tuple(e["loc"]) == ("body",) for e in found):
        return problem_response(request, errors.MalformedRequest("the body is empty"))
    body = body_type(request)
    listed = [field_error(e, body=body) for e in found[:MAX_ERRORS]]
    reasons = "; ".join(f"{e['field']}: {e['message']}" for e in listed[:5])
    more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
    detail = f"{reasons}{more}"
    return problem_response(request, errors.ValidationFailed(detail, errors=listed))


def encoding_error(request: Request) -> errors.ServiceError | None:
    """What is wrong with a body that cannot be read because it is compressed."""
    try:
        refuse_encoded(request)
    except errors.UnsupportedMediaType as error:
        return error
    return None


def body_type(request: Request) -> Any:
    """Type of the body that the route takes, if it takes one."""
    field = getattr(request.scope.get("route"), "body_field", None)
    return field.field_info.annotation if field else None


async def on_http_exception(request: Request, exc: Exception) -> Response:
    """What the framework refuses: unknown routes and methods, unreadable bodies."""
    assert isinstance(exc, HTTPException)
    path = clip(request.url.path)
    match exc.status_code:
        case 404:
            error: errors.ServiceError = errors.RouteNotFound(f"no route {path!r}")
        case 405:
            allowed = ", ".join(allowed_methods(request))
            error = errors.MethodNotAllowed(
                f"{request.method} on {path!r}; allowed: {allowed}", headers={"Allow": allowed}
            )
        case 400:
            error = encoding_error(request) or errors.MalformedRequest(
                "the body cannot be read as JSON in UTF-8: other bytes, nested too deeply, or "
                "a number of too many digits"
            )
        case status if status in BY_STATUS:
            error = BY_STATUS[status](str(exc.detail), headers=exc.headers)
        case _:
            return await on_unexpected(request, exc)
    return problem_response(request, error)


def allowed_methods(request: Request) -> list[str]:
    """All methods that some route takes on this path."""
    scope = dict(request.scope)
    methods = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
    taken = {m for m in methods if _takes(request.app, scope | {"method": m})}
    if "GET" in taken:
        taken.add("HEAD")
    return sorted(taken)


def _takes(app: FastAPI, scope: dict[str, Any]) -> bool:
    return any(route.matches(dict(scope))[0] is Match.FULL for route in app.router.routes)


async def on_missing_job(request: Request, exc: Exception) -> Response:
    """The store knows no such job, any more or at all."""
    days = request.state.settings.job_retention_days
    missing = str(request.path_params.get("id", ""))
    if is_past(missing, now_ms=int(time.time() * 1000), days=days):
        text = f"job {missing!r} is over {days:g} days old; its record is deleted"
        return problem_response(request, errors.JobGone(text))
    return await unless_rebuilding(request, errors.JobNotFound(str(exc)))


async def unless_rebuilding(request: Request, error: errors.ServiceError) -> Response:
    """What is not found may be on its way back, where the store has lost its data."""
    try:
        is_due = await in_thread(Threads.LOOKS, request.state.rebuilding.is_due)
    except RedisError as exc:
        return await on_redis_error(request, exc)
    if not is_due:
        return problem_response(request, error)
    detail = "the job store has lost its data; records of finished jobs are being put back"
    return problem_response(request, errors.RedisUnavailable(detail))


async def on_missing_result(request: Request, exc: Exception) -> Response:
    """A job's result was there once: it was deleted to make room."""
    return problem_response(request, errors.ResultExpired(str(exc.args[0])))


async def on_storage_error(request: Request, exc: Exception) -> Response:
    """What keeps the results is away; the client may come again."""
    logger.warning("storage.unavailable", extra={"error": f"{exc}: {exc.__cause__}"})
    return problem_response(request, errors.StorageUnavailable(str(exc)))


async def on_redis_error(request: Request, exc: Exception) -> Response:
    """The job store is down or takes no writes; the client may come again."""
    if not is_away(exc):
        return await on_unexpected(request, exc)
    reason = why_away(exc)
    logger.warning("redis.unavailable", extra={"error": f"{type(exc).__name__}: {exc}"})
    told = "refuses writes for now" if reason.startswith("refuses") else "does not answer"
    return problem_response(request, errors.RedisUnavailable(f"Redis {told}"))


async def on_os_error(request: Request, exc: Exception) -> Response:
    """A disk that is full or takes no files has a code, any other fault is unexpected."""
    number = refusal_in(exc)
    if number is None:
        return await on_unexpected(request, exc)
    logger.warning("disk.refused", extra={"error": f"{type(exc).__name__}: {exc}"})
    if number in FULL:
        return problem_response(request, errors.DiskFull("the data folder's disk is full"))
    detail = f"the data folder {describe_refusal(number).removeprefix('the disk ')}"
    return problem_response(request, errors.StorageUnavailable(detail))


async def on_disconnect(request: Request, _exc: Exception) -> Response:
    """The client went away while sending: nobody reads the answer, and nobody is at fault."""
    return problem_response(request, errors.MalformedRequest("the body ended too early"))


async def on_unexpected(request: Request, exc: Exception) -> Response:
    """A bug: the operator gets the traceback, the user a request id to report."""
    logger.error("request.failed", extra={"path": request.url.path}, exc_info=exc)
    detail = "an unexpected error; the operator finds it in the log under the request id"
    return problem_response(request, errors.InternalError(detail))
