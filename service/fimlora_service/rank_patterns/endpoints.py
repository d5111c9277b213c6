"""Rank patterns for CI and clusters: by content, by inputs, by name, and compared.

Looking one up never starts work. What is addressed by content never changes; what is
addressed by inputs or by name is revalidated with the content's tag.
"""

import json
from contextlib import suppress
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from redis.exceptions import RedisError

from fimlora.adapter.exports import FORMATS, as_yaml, export
from fimlora.errors import FimloraError
from fimlora.plan import RankPlan
from fimlora_contract.digests import digest_bytes
from fimlora_contract.rank_patterns import Pin, PinEntry, RankDiff, RankPattern
from fimlora_contract.references import NAME
from fimlora_contract.requests import DIGEST, PinRequest
from fimlora_jobs.catalogue import Catalogue, lookup_key
from fimlora_jobs.record import as_time
from fimlora_jobs.results.store import ResultMissing
from fimlora_jobs.results.tracked import TrackedArtifacts
from fimlora_service import errors
from fimlora_service.calibrations.endpoints import require_json
from fimlora_service.http.dependencies import (
    ArtifactsDep,
    JobId,
    ResolverDep,
    StoreDep,
    problems,
)
from fimlora_service.http.headers import matches
from fimlora_service.http.strict_queries import StrictQueryRoute
from fimlora_service.jobs.endpoints import result_of
from fimlora_service.rank_patterns.drift import rank_changes, rank_drift

BUDGET_TEXT = r"^((rank|parameters|bytes):)?[0-9]{1,15}$|^fraction:(0?\.[0-9]{1,12}|1)$"
Format = Literal[
    "json", "yaml", "peft", "layout-c", "axolotl", "llama-factory", "ms-swift", "trl",
    "unsloth", "vllm",
]  # fmt: skip
FormatQuery = Annotated[Format, Query(description="Whose words to write the pattern in.")]
Name = Annotated[str, Path(pattern=NAME, description="Name of a pin.", examples=["sst2"])]
Tag = Annotated[str, Path(pattern=NAME, description="Tag of a pin.", examples=["prod"])]
Digest = Annotated[str, Path(pattern=DIGEST, description="Content address of a result.")]
ForEver, Revalidate = "public, max-age=31536000, immutable", "no-cache"
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": RankPattern,
        "description": "The pattern; its ETag is its content.",
        "content": {
            kind: {"schema": {"type": "string"}}
            for kind in ("application/yaml", "text/x-python", "text/plain")
        },
    },
    304: {"description": "The client's copy is the same."},
    **problems(
        errors.NoPattern,
        errors.ResultExpired,
        errors.StorageUnavailable,
        errors.ValidationFailed,
        errors.RedisUnavailable,
    ),
}
router = APIRouter(tags=["rank patterns"], route_class=StrictQueryRoute)


@router.get("/rank-patterns/{digest}", response_class=Response, responses=ANSWERS)
def retrieve_rank_pattern(
    digest: Digest, request: Request, artifacts: ArtifactsDep, format: FormatQuery = "json"
) -> Response:
    """Deliver a result by its content address, for CI and clusters."""
    return answer(request, artifacts, digest, format, cache=ForEver)


@router.get("/rank-patterns", response_class=Response, responses=ANSWERS)
def find_rank_pattern(
    model: Annotated[str, Query(max_length=256, description="As in a request, or a digest.")],
    dataset: Annotated[str, Query(max_length=256, description="As in a request.")],
    request: Request,
    store: StoreDep,
    artifacts: ArtifactsDep,
    resolver: ResolverDep,
    budget: Annotated[
        str | None,
        Query(
            pattern=BUDGET_TEXT,
            description="A mean rank, or `parameters:2000000` and the like.",
        ),
    ] = None,
    format: FormatQuery = "json",
) -> Response:
    """Deliver the newest result for some inputs; never starts work."""
    inputs = (model, dataset, read_budget(budget))
    keys = [lookup_key(*inputs, tenant=tenant) for tenant in ("", resolver.tenant)]
    record = Catalogue(store).newest_of(keys)
    result = record.json_field("result") if record else None
    if result is None:
        asked = f"model={model!r}, dataset={dataset!r}, budget={budget or 'any'}"
        raise errors.NoPattern(f"no job has succeeded for {asked}")
    return answer(request, artifacts, result["digest"], format, cache=Revalidate)


@router.put(
    "/rank-patterns/{name}/{tag}",
    dependencies=[Depends(require_json)],
    response_description="The pin stands for another result now, or did already.",
    responses={
        201: {"model": Pin, "description": "The pin is new."},
        **problems(
            errors.MalformedRequest,
            errors.JobNotFound,
            errors.NoPattern,
            errors.ResultExpired,
            errors.StorageUnavailable,
            errors.JobNotFinished,
            errors.JobFailed,
            errors.JobCanceled,
            errors.PayloadTooLarge,
            errors.UnsupportedMediaType,
            errors.ValidationFailed,
            errors.RedisUnavailable,
        ),
    },
)
def pin_rank_pattern(
    name: Name,
    tag: Tag,
    body: PinRequest,
    store: StoreDep,
    artifacts: ArtifactsDep,
    response: Response,
) -> Pin:
    """Let a name and tag stand for a result; what they stood for stays in the history."""
    digest = body.digest or result_of(store.get(body.job_id or "").to_job()).digest
    read_pattern(artifacts, digest)
    if Catalogue(store).pin(name, tag, digest):
        response.status_code = 201
    return pin_of(Catalogue(store), name, tag)


@router.get("/rank-patterns/{name}/{tag}", response_class=Response, responses=ANSWERS)
def retrieve_pinned_rank_pattern(
    name: Name,
    tag: Tag,
    request: Request,
    store: StoreDep,
    artifacts: ArtifactsDep,
    format: FormatQuery = "json",
) -> Response:
    """Deliver the result that a pin stands for."""
    digest = pin_of(Catalogue(store), name, tag).digest
    return answer(request, artifacts, digest, format, cache=Revalidate)


@router.get(
    "/rank-patterns/{name}/{tag}/history",
    responses=problems(
        errors.NoPattern,
        errors.ResultExpired,
        errors.StorageUnavailable,
        errors.ValidationFailed,
        errors.RedisUnavailable,
    ),
)
def retrieve_pin_history(name: Name, tag: Tag, store: StoreDep) -> Pin:
    """Tell what a pin stands for and stood for."""
    return pin_of(Catalogue(store), name, tag)


@router.get(
    "/jobs/{id}/diff/{other}",
    tags=["jobs"],
    responses=problems(
        errors.JobNotFound,
        errors.JobNotFinished,
        errors.JobFailed,
        errors.JobCanceled,
        errors.ValidationFailed,
        errors.RedisUnavailable,
    ),
)
def diff_jobs(id: JobId, other: JobId, store: StoreDep) -> RankDiff:
    """Tell how the ranks of two results differ, per module and in sum."""
    a, b = (result_of(store.get(job_id).to_job()).rank_map for job_id in (id, other))
    return RankDiff(job_a=id, job_b=other, drift=rank_drift(a, b), modules=rank_changes(a, b))


def answer(
    request: Request, artifacts: TrackedArtifacts, digest: str, format: Format, *, cache: str
) -> Response:
    """A pattern in a format, or 304; the tag of JSON is the content address itself."""
    text, media_type, tag = render(read_pattern(artifacts, digest), format)
    headers = {"ETag": f'"{tag}"', "Cache-Control": cache, "Content-Location": location(digest)}
    if matches(request.headers.get("if-none-match", ""), tag):
        return Response(status_code=304, headers=headers)
    return Response(text, media_type=media_type, headers=headers)


def location(digest: str) -> str:
    """Where a pattern can be fetched for ever."""
    return f"/rank-patterns/{digest}"


def render(pattern: RankPattern, format: Format) -> tuple[str, str, str]:
    """Text, media type and tag of a pattern in a format."""
    if format == "json":
        return pattern.model_dump_json(), "application/json", pattern.digest
    if format == "yaml":
        text, media_type = as_yaml(pattern.model_dump(mode="json")), FORMATS["axolotl"][1]
    else:
        try:
            plan = RankPlan.from_json(pattern.rank_map.model_dump())
            written = export(plan, pattern.adapter_config, format)
        except FimloraError as error:
            raise errors.ValidationFailed(f"format={format}: {error}") from error
        text, media_type = written.text, written.media_type
    return text, media_type, digest_bytes(text.encode())


def read_pattern(artifacts: TrackedArtifacts, digest: str) -> RankPattern:
    """A committed result by its content address.

    Raises:
        NoPattern: There is none.
    """
    with suppress(RedisError):  # what never changes can be read without it
        artifacts.use(digest)
    try:
        rank_map, config = (
            json.loads(artifacts.store.local(digest, f"{name}.json").read_bytes())
            for name in ("rank_map", "adapter_config")
        )
    except (ResultMissing, FileNotFoundError):
        raise errors.NoPattern(f"no result with digest {digest}") from None
    return RankPattern(digest=digest, adapter_config=config, rank_map=rank_map)


def pin_of(catalogue: Catalogue, name: str, tag: str) -> Pin:
    """A pin with its history.

    Raises:
        NoPattern: Nothing was ever pinned there.
    """
    entries = catalogue.pinned(name, tag)
    if not entries:
        raise errors.NoPattern(
            f"nothing is pinned as {name}/{tag}",
            next_step=f"PUT /rank-patterns/{name}/{tag} with a job_id or a digest pins a result.",
        )
    history = [
        PinEntry.model_validate({"digest": e.digest, "pinned_at": as_time(str(e.pinned_at_ms))})
        for e in entries
    ]
    return Pin(name=name, tag=tag, digest=entries[0].digest, history=history)


def read_budget(text: str | None) -> dict[str, int | float] | None:
    """A budget of a query as the fields of a request."""
    if text is None:
        return None
    unit, _, amount = text.rpartition(":")
    return {unit or "rank": float(amount) if unit == "fraction" else int(amount)}
