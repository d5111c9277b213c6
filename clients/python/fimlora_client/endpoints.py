"""Every route of the service as a function from arguments to a `Call`."""

import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict, Unpack
from urllib.parse import quote as percent_encode

from pydantic import ValidationError

from fimlora_client.calls import Call, json_body
from fimlora_client.errors import InvalidFile, ValidationFailed, problem_of
from fimlora_contract.jobs import Job
from fimlora_contract.references import (
    HubDataset,
    HubModel,
    InlineDataset,
    LocalDataset,
    LocalModel,
    UploadedDataset,
)
from fimlora_contract.requests import (
    AdapterOptions,
    Allocation,
    Budget,
    Calibration,
    CalibrationRequest,
)

JSON = {"content-type": "application/json"}
UPLOADS = {".jsonl": "application/x-ndjson", ".parquet": "application/vnd.apache.parquet"}


class CalibrationFields(TypedDict, total=False):
    """The fields of a calibration request as keyword arguments."""

    base_model: str | HubModel | LocalModel | Mapping[str, Any]
    dataset: (
        str | HubDataset | UploadedDataset | InlineDataset | LocalDataset | Mapping[str, Any]
    )
    budget: int | Budget | Mapping[str, Any]
    target_modules: list[str] | str | None
    calibration: Calibration | Mapping[str, Any]
    allocation: Allocation | Mapping[str, Any]
    adapter: AdapterOptions | Mapping[str, Any]
    metadata: dict[str, str]
    force: bool


def build_request(
    request: CalibrationRequest | None, **fields: Unpack[CalibrationFields]
) -> CalibrationRequest:
    """The request as given, or built and checked from its fields.

    Raises:
        ValidationFailed: A field is wrong; the same exception the service's refusal raises.
    """
    if request is not None:
        return request.model_copy(update=dict(fields)) if fields else request
    try:
        return CalibrationRequest.model_validate(fields)
    except ValidationError as error:
        errors = [
            {"field": ".".join(map(str, e["loc"])), "message": e["msg"], "type": e["type"]}
            for e in error.errors(include_url=False, include_input=False)
        ]
        problem = problem_of("validation_failed", "the request is not valid", errors=errors)
        raise ValidationFailed(problem) from None


def calibrate(request: CalibrationRequest, *, idempotency_key: str | None = None) -> Call:
    """POST /calibrate."""
    key = idempotency_key or uuid.uuid4().hex
    body = json_body(request.model_dump(mode="json"))
    return Call("POST", "/calibrate", headers=JSON | {"idempotency-key": key}, content=body)


def retrieve_job(job_id: str, *, wait: float = 0) -> Call:
    """GET /jobs/{id}."""
    params = {"wait": f"{wait:g}"} if wait else {}
    return Call("GET", f"/jobs/{quote(job_id)}", params=params, wait_s=wait)


def list_jobs(*, limit: int | None = None, cursor: str | None = None) -> Call:
    """GET /jobs."""
    params = {"limit": str(limit) if limit else None, "cursor": cursor}
    return Call("GET", "/jobs", params={k: v for k, v in params.items() if v is not None})


def cancel_job(job_id: str) -> Call:
    """POST /jobs/{id}/cancel."""
    return Call("POST", f"/jobs/{quote(job_id)}/cancel")


def job_events(job_id: str, *, after: str | None = None) -> Call:
    """GET /jobs/{id}/events as a stream."""
    headers = {"accept": "text/event-stream"} | ({"last-event-id": after} if after else {})
    return Call("GET", f"/jobs/{quote(job_id)}/events", headers=headers)


def job_result(job_id: str) -> Call:
    """GET /jobs/{id}/result."""
    return Call("GET", f"/jobs/{quote(job_id)}/result")


def job_artifact(job_id: str, name: str) -> Call:
    """GET /jobs/{id}/artifacts/{name}."""
    return Call("GET", f"/jobs/{quote(job_id)}/artifacts/{quote(name)}")


def upload_dataset(data: str | Path | Iterable[Mapping[str, Any]]) -> Call:
    """POST /datasets with a JSONL or Parquet file, or with rows.

    Raises:
        InvalidFile: There is no such file, or it has another format.
    """
    if not isinstance(data, str | Path):
        rows = b"".join(json_body(dict(row)) + b"\n" for row in data)
        return Call("POST", "/datasets", headers=_type_of(".jsonl"), content=rows)
    path = Path(data)
    if path.suffix not in UPLOADS:
        raise InvalidFile(f"{path} is not one of {sorted(UPLOADS)}, the formats for uploads")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidFile(f"cannot read {path}: {error.strerror}") from error
    return Call("POST", "/datasets", headers=_type_of(path.suffix), content=content)


def get(path: str) -> Call:
    """GET of a route without arguments."""
    return Call("GET", path)


def quote(part: str) -> str:
    """One part of a path; an empty one would become another route."""
    return percent_encode(part, safe="") or "-"


def _type_of(suffix: str) -> dict[str, str]:
    return {"content-type": UPLOADS[suffix]}


def auth(api_key: str | None) -> dict[str, str]:
    """The headers that say who is asking."""
    return {"authorization": f"Bearer {api_key}"} if api_key else {}


def keep_cached(before: Job, now: Job) -> Job:
    """Only the answer to POST /calibrate says that a result was cached; remember it."""
    return now.model_copy(update={"cached": True}) if before.cached else now
