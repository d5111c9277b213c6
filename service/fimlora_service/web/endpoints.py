"""The page at ``/`` and the API's reference at ``/docs``: files of this service, no CDN.

They hold no data, so they ask for no key: the page asks the API, and that does. Their own
addresses are fragments (``/#/jobs``), which never reach the service: no route is shadowed.
"""

from typing import Annotated

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from fimlora_contract import __version__
from fimlora_service.http.dependencies import part
from fimlora_service.http.headers import has_copy, quality_of
from fimlora_service.http.threads import ThreadRoute, reads_files
from fimlora_service.web.files import PageFiles

HTML = ("text/html", "text/*", "*/*")
JSON = ("application/json", "application/*")
# Its name holds a digest of its content: what is under it never changes.
NEVER_CHANGES = "max-age=31536000, immutable"
ASK_AGAIN = "no-cache"
PageFilesDep = Annotated[PageFiles, part("page_files")]
router = APIRouter(route_class=ThreadRoute, include_in_schema=False)


@router.get("/")
@reads_files
def page(request: Request, files: PageFilesDep) -> Response:
    """The page; for a program that would rather have JSON, where to go on."""
    accept = request.headers.get("accept") or "*/*"
    if quality_of(accept, JSON) > quality_of(accept, HTML):
        return service_links()
    answer = file_answer(request, files, "index.html", keep=ASK_AGAIN)
    answer.headers.append("Vary", "Accept")
    return answer


def service_links() -> Response:
    """Where a program finds the rest."""
    body = (
        f'{{"service":"fimlora","version":"{__version__}","openapi":"/openapi.json",'
        '"docs":"/docs"}'
    )
    return Response(body, media_type="application/json", headers={"Vary": "Accept"})


@router.get("/docs")
@reads_files
def reference(request: Request, files: PageFilesDep) -> Response:
    """The reference of the API, made of /openapi.json by the browser."""
    return file_answer(request, files, "docs.html", keep=ASK_AGAIN)


@router.get("/llms.txt")
@reads_files
def for_agents(request: Request, files: PageFilesDep) -> Response:
    """What this service is and how to use it, for programs that read."""
    return file_answer(request, files, "llms.txt", keep=ASK_AGAIN)


@router.get("/assets/{name}")
@reads_files
def asset(name: str, request: Request, files: PageFilesDep) -> Response:
    """A script, style or picture of the page."""
    return file_answer(request, files, f"assets/{name}", keep=NEVER_CHANGES)


def file_answer(request: Request, files: PageFiles, name: str, *, keep: str) -> Response:
    """A file of the build, compressed for who takes that; nothing if the client has it.

    Raises:
        HTTPException: There is no such file.
    """
    file = files.get(name)
    if file is None:
        raise HTTPException(404)
    compress = quality_of(request.headers.get("accept-encoding", ""), ("gzip", "*")) > 0
    tag = f"{file.digest}-gzip" if compress else file.digest
    headers = {"ETag": f'"{tag}"', "Cache-Control": keep, "Vary": "Accept-Encoding"}
    if has_copy(request, tag):
        return Response(status_code=304, headers=headers)
    if compress:
        headers["Content-Encoding"] = "gzip"
    body = file.compressed if compress else file.content
    return Response(body, media_type=file.media_type, headers=headers)
