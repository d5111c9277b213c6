"""Rank patterns for CI and clusters: by content, by inputs, by name, and compared.

Looking one up never starts work. What is addressed by content never changes; what is
addressed by inputs or by name is revalidated with the content's tag.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import AfterValidator

from fimlora_contract.budgets import LONGEST, read_budget
from fimlora_contract.drift import rank_changes, rank_drift
from fimlora_contract.keys import Scope
from fimlora_contract.rank_patterns import (
    ListedPin,
    PeftConfig,
    Pin,
    PinEntry,
    PinPage,
    RankDiff,
    RankPattern,
)
from fimlora_contract.references import NAME, PIN
from fimlora_contract.requests import DIGEST, PinRequest
from fimlora_jobs.catalogue import Catalogue, lookup_key
from fimlora_jobs.record import as_time
from fimlora_jobs.results.kept_pins import KeptPins
from fimlora_service import errors
from fimlora_service.http.dependencies import (
    ArtifactsDep,
    StoreDep,
    part,
    problems,
    require_json,
)
from fimlora_service.http.threads import reads_files
from fimlora_service.keys.access import JobId, OtherJobId, Whose, check_result, shown_to
from fimlora_service.keys.gate import check_scope
from fimlora_service.keys.principal import OPERATOR, READS, SUBMITS, PrincipalDep
from fimlora_service.keys.routes import ScopedRoute
from fimlora_service.rank_patterns.render import FOR_EVER, REVALIDATE, Asked, Format, answer
from fimlora_service.resolve.resolver import Resolver
from fimlora_service.results.reading import plan_of, read_pattern


async def _resolver(
    principal: PrincipalDep, resolver: Annotated[Resolver, part("resolver")]
) -> Resolver:
    return resolver.of(principal)


def check_budget(text: str | None) -> str | None:
    """Refuse a query that is no budget in one word."""
    if text is not None:
        read_budget(text)
    return text


ResolverDep = Annotated[Resolver, Depends(_resolver)]


async def read_format(
    format: Annotated[
        Format, Query(description="Whose words to write the pattern in.")
    ] = "json",
    steps: Annotated[
        int | None,
        Query(ge=2, le=10**9, description="With `adalora`: optimizer steps of the training."),
    ] = None,
    accumulation: Annotated[
        int | None,
        Query(ge=1, le=10**6, description="With `adalora`: micro-batches per optimizer step."),
    ] = None,
) -> Asked:
    """What the pattern is wanted in."""
    return Asked(format, steps, accumulation)


AskedDep = Annotated[Asked, Depends(read_format)]
Name = Annotated[str, Path(pattern=NAME, description="Name of a pin.", examples=["sst2"])]
Tag = Annotated[str, Path(pattern=NAME, description="Tag of a pin.", examples=["prod"])]
Digest = Annotated[str, Path(pattern=DIGEST, description="Content address of a result.")]
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": RankPattern | PeftConfig,
        "description": "The pattern; its ETag is its content. JSON is a rank pattern, or with "
        "`format=peft`, `layout-c` or `adalora` a configuration of PEFT. `yaml`, `axolotl` and "
        "`llama-factory` are YAML, `trl` and `unsloth` Python, `ms-swift` and `vllm` the "
        "arguments of a command.",
        "content": {
            "application/yaml": {"schema": {"type": "object"}},
            "text/x-python": {"schema": {"type": "string"}},
            "text/plain": {"schema": {"type": "string"}},
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
router = APIRouter(tags=["rank patterns"], route_class=ScopedRoute)


@router.get(
    "/rank-patterns/{digest}", dependencies=[READS], response_class=Response, responses=ANSWERS
)
@reads_files
def retrieve_rank_pattern(
    digest: Digest,
    request: Request,
    store: StoreDep,
    artifacts: ArtifactsDep,
    principal: PrincipalDep,
    asked: AskedDep,
) -> Response:
    """Deliver a result by its content address, for CI and clusters."""
    check_result(digest, principal, store)
    return answer(request, read_pattern(artifacts, digest), asked, cache=FOR_EVER)


@router.get("/rank-patterns", dependencies=[READS], response_class=Response, responses=ANSWERS)
@reads_files
def find_rank_pattern(
    model: Annotated[str, Query(max_length=256, description="As in a request, or a digest.")],
    dataset: Annotated[str, Query(max_length=256, description="As in a request.")],
    request: Request,
    store: StoreDep,
    artifacts: ArtifactsDep,
    resolver: ResolverDep,
    asked: AskedDep,
    budget: Annotated[
        str | None,
        AfterValidator(check_budget),
        Query(
            max_length=LONGEST,
            description="In one word: `8` is the mean rank, `8M` or `parameters:8000000` are "
            "parameters, `1%` is a share of the base model, `64MB` are bytes.",
        ),
    ] = None,
) -> Response:
    """Deliver the newest result for some inputs; never starts work."""
    inputs = (model, dataset, read_budget(budget) if budget else None)
    salts = [resolver.salt(is_restricted=restricted) for restricted in (False, True)]
    keys = [lookup_key(*inputs, tenant=salt) for salt in salts]
    record = Catalogue(store).newest_of(keys)
    result = record.json_field("result") if record else None
    if result is None:
        wanted = f"model={model!r}, dataset={dataset!r}, budget={budget or 'any'}"
        raise errors.NoPattern(f"no job has succeeded for {wanted}")
    pattern = read_pattern(artifacts, result["digest"])
    return answer(request, pattern, asked, cache=REVALIDATE)


@router.put(
    "/rank-patterns/{name}/{tag}",
    dependencies=[SUBMITS, Depends(require_json)],
    response_description="The pin stands for another result now, or did already.",
    responses={
        201: {"model": Pin, "description": "The pin is new."},
        **problems(
            errors.MalformedRequest,
            errors.JobNotFound,
            errors.NoPattern,
            errors.ResultExpired,
            errors.DiskFull,
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
    principal: PrincipalDep,
    response: Response,
) -> Pin:
    """Let a name and tag stand for a result; what they stood for stays in the history.

    A pin of the operator is shared: every tenant that has none of that name fetches it.
    """
    if principal.tenant == OPERATOR:
        check_scope(principal, Scope.ADMIN)
    if body.job_id:
        digest = plan_of(shown_to(principal, body.job_id, store).to_job()).digest
    else:
        digest = check_result(body.digest or "", principal, store)
    read_pattern(artifacts, digest)
    owner = principal.tenant
    if Catalogue(store).pin(name, tag, digest, owner=owner, by=principal.key_id):
        response.status_code = 201
    KeptPins(artifacts.notes, Catalogue(store)).keep(name, tag, owner=owner)
    return pin_of(Catalogue(store), name, tag, owner=owner)


@router.get(
    "/rank-patterns/{name}/{tag}",
    dependencies=[READS],
    response_class=Response,
    responses=ANSWERS,
)
@reads_files
def retrieve_pinned_rank_pattern(
    name: Name,
    tag: Tag,
    request: Request,
    store: StoreDep,
    artifacts: ArtifactsDep,
    principal: PrincipalDep,
    asked: AskedDep,
) -> Response:
    """Deliver the result that a pin stands for: your own, or else the one that all share."""
    digest = pin_of(Catalogue(store), name, tag, owner=principal.tenant).digest
    return answer(request, read_pattern(artifacts, digest), asked, cache=REVALIDATE)


@router.get(
    "/rank-patterns/{name}/{tag}/history",
    dependencies=[READS],
    responses=problems(
        errors.NoPattern,
        errors.ResultExpired,
        errors.StorageUnavailable,
        errors.ValidationFailed,
        errors.RedisUnavailable,
    ),
)
def retrieve_pin_history(name: Name, tag: Tag, store: StoreDep, principal: PrincipalDep) -> Pin:
    """Tell what a pin stands for and stood for, since when, and by whom."""
    return pin_of(Catalogue(store), name, tag, owner=principal.tenant)


@router.get(
    "/pins",
    dependencies=[READS],
    responses=problems(errors.ValidationFailed, errors.RedisUnavailable),
)
def list_pins(
    store: StoreDep,
    whose: Whose,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Annotated[str | None, Query(pattern=PIN)] = None,
) -> PinPage:
    """List what names stand for: your own pins, and those that all share, by name."""
    found = Catalogue(store).pins(owner=whose or OPERATOR, after=cursor or "", limit=limit + 1)
    pins = [
        ListedPin.model_validate(
            {
                "name": pin.name,
                "tag": pin.tag,
                "digest": pin.newest.digest,
                "owner": pin.owner,
                "pinned_at": as_time(str(pin.newest.pinned_at_ms)),
                "pinned_by": pin.newest.by,
            }
        )
        for pin in found[:limit]
    ]
    more = f"{pins[-1].name}:{pins[-1].tag}" if len(found) > limit else None
    return PinPage(data=pins, next_cursor=more)


@router.get(
    "/jobs/{id}/diff/{other}",
    dependencies=[READS],
    tags=["jobs"],
    responses=problems(
        errors.JobNotFound,
        errors.NoPattern,
        errors.JobNotFinished,
        errors.JobFailed,
        errors.JobCanceled,
        errors.ValidationFailed,
        errors.RedisUnavailable,
    ),
)
def diff_jobs(id: JobId, other: OtherJobId, store: StoreDep) -> RankDiff:
    """Tell how the ranks of two results differ, per module and in sum."""
    a, b = (plan_of(store.get(job_id).to_job()).rank_map for job_id in (id, other))
    return RankDiff(job_a=id, job_b=other, drift=rank_drift(a, b), modules=rank_changes(a, b))


def pin_of(catalogue: Catalogue, name: str, tag: str, *, owner: str) -> Pin:
    """A pin with its history.

    Raises:
        NoPattern: Nothing was ever pinned there.
    """
    found = catalogue.find_pin(name, tag, owner=owner)
    if found is None:
        raise errors.NoPattern(
            f"nothing is pinned as {name}/{tag}",
            next_step=f"PUT /rank-patterns/{name}/{tag} with a job_id or a digest pins a result.",
        )
    before = [*(entry.digest for entry in found.history[1:]), None]
    history = [
        PinEntry.model_validate(
            {
                "digest": entry.digest,
                "pinned_at": as_time(str(entry.pinned_at_ms)),
                "pinned_by": entry.by,
                "replaced": replaced,
            }
        )
        for entry, replaced in zip(found.history, before, strict=True)
    ]
    digest = found.history[0].digest
    return Pin(name=name, tag=tag, digest=digest, owner=found.owner, history=history)
