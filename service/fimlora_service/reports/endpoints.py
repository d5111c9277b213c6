"""Reports and pictures to look at: pages that need no service, drawn when they are asked for.

They name the day, which files of a result cannot, and are the same for the same job.
"""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response

from fimlora_contract.digests import digest_bytes
from fimlora_contract.jobs import CalibrationResult, Job
from fimlora_contract.verdicts import EvaluationResult
from fimlora_jobs.store import JobStore
from fimlora_service import errors
from fimlora_service.evaluations.endpoints import check_kind
from fimlora_service.http.dependencies import StoreDep, part, problems
from fimlora_service.http.headers import has_copy
from fimlora_service.http.threads import draws
from fimlora_service.keys.access import JobId
from fimlora_service.keys.principal import READS
from fimlora_service.keys.routes import ScopedRoute
from fimlora_service.reports.kept import KeptDrawings
from fimlora_service.results.reading import plan_of, result_of

router = APIRouter(route_class=ScopedRoute)
DrawingsDep = Annotated[KeptDrawings, part("drawings")]
REFUSALS = (
    errors.JobNotFound,
    errors.JobNotFinished,
    errors.JobFailed,
    errors.JobCanceled,
    errors.NoPattern,
    errors.ValidationFailed,
    errors.RedisUnavailable,
)
HTML, PNG, SVG = "text/html", "image/png", "image/svg+xml"


def drawn(media_type: str) -> dict[int | str, dict[str, Any]]:
    """OpenAPI documentation of an answer that is drawn."""
    schema = {"type": "string"} | ({"format": "binary"} if media_type == PNG else {})
    return {
        200: {"content": {media_type: {"schema": schema}}},
        304: {"description": "The client's copy is the same."},
        **problems(*REFUSALS),
    }


@router.get(
    "/jobs/{id}/report",
    tags=["jobs"],
    dependencies=[READS],
    response_class=Response,
    response_description="A page that needs neither scripts nor a network.",
    responses=drawn(HTML),
)
@draws
def retrieve_report(
    id: JobId, request: Request, store: StoreDep, drawings: DrawingsDep
) -> Response:
    """Tell what a job found as a page of its own: of a plan, or of an evaluation."""
    return report_of(id, request, store, drawings)


@router.get(
    "/evaluations/{id}/report",
    tags=["evaluations"],
    dependencies=[READS],
    response_class=Response,
    response_description="A page that needs neither scripts nor a network.",
    responses=drawn(HTML),
)
@draws
def retrieve_evaluation_report(
    id: JobId, request: Request, store: StoreDep, drawings: DrawingsDep
) -> Response:
    """Tell what an evaluation found as a page of its own."""
    check_kind(store, id)
    return report_of(id, request, store, drawings)


@router.get(
    "/jobs/{id}/rank_map.png",
    tags=["jobs"],
    dependencies=[READS],
    response_class=Response,
    response_description="The rank map, with model, data and day.",
    responses=drawn(PNG),
)
@draws
def retrieve_rank_map_picture(
    id: JobId, request: Request, store: StoreDep, drawings: DrawingsDep
) -> Response:
    """Draw the rank map of a plan for where vectors are not shown, such as chats."""
    job = store.shown(id).to_job()
    result = plan_of(job)

    def make() -> bytes:
        from fimlora_service.reports.drawing import draw_png
        from fimlora_service.reports.plan_report import dated_picture

        return draw_png(dated_picture(job, result.rank_map))

    return answer(request, job, drawings, make, media_type=PNG, name=f"rank_map-{id}.png")


@router.get(
    "/jobs/{id}/rank_map.svg",
    tags=["jobs"],
    dependencies=[READS],
    response_class=Response,
    response_description="The rank map, with model, data and day.",
    responses=drawn(SVG),
)
@draws
def retrieve_dated_rank_map(
    id: JobId, request: Request, store: StoreDep, drawings: DrawingsDep
) -> Response:
    """Draw the rank map of a plan with its day, which the file of that name cannot have.

    The file is kept by its content, and the same plan has the same content on every day.
    """
    job = store.shown(id).to_job()
    result = plan_of(job)

    def make() -> bytes:
        from fimlora_service.reports.plan_report import dated_picture

        return dated_picture(job, result.rank_map).encode()

    return answer(request, job, drawings, make, media_type=SVG, name=f"rank_map-{id}.svg")


def report_of(
    job_id: str, request: Request, store: JobStore, drawings: KeptDrawings
) -> Response:
    """The report of a job of either kind that has one."""
    job = store.shown(job_id).to_job()
    result = result_of(job)
    if not isinstance(result, CalibrationResult | EvaluationResult):
        raise errors.NoPattern(
            f"job {job_id!r} is of kind {job.kind} and has no report; its picture is "
            f"GET /jobs/{job_id}/artifacts/compare.svg"
        )

    def make() -> bytes:
        from fimlora_service.reports.evaluation_report import evaluation_report
        from fimlora_service.reports.pages import render
        from fimlora_service.reports.plan_report import plan_report

        if isinstance(result, EvaluationResult):
            return render(evaluation_report(job, result))
        return render(plan_report(job, result))

    return answer(request, job, drawings, make, media_type=HTML, name=f"report-{job_id}.html")


def answer(
    request: Request,
    job: Job,
    drawings: KeptDrawings,
    make: Callable[[], bytes],
    *,
    media_type: str,
    name: str,
) -> Response:
    """What was drawn, or is now; shown where it is opened, and kept by who has it."""
    body = drawings.get((media_type, job.id, result_of(job).digest), make)
    tag = digest_bytes(body)
    headers = {"ETag": f'"{tag}"', "Cache-Control": "private, no-cache"}
    if has_copy(request, tag):
        return Response(status_code=304, headers=headers)
    headers["Content-Disposition"] = f'inline; filename="{name}"'
    return Response(body, media_type=media_type, headers=headers)
