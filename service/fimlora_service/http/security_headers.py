"""Headers that tell a browser what not to do with an answer; on every answer, errors too.

What the service sends is data, but for two pages of its own, which run their own scripts only. A
page of another site can neither frame nor embed nor read it, and a result's report or picture that
is opened in a browser runs no script, whatever it holds.
"""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

FIXED = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
DATA_POLICY = (
    "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; sandbox"
)
# Reports and pictures bring their styles, and pictures in their text.
FILE_POLICY = f"{DATA_POLICY}; style-src 'unsafe-inline'; img-src data:"
# The page and the reference of the API: their own files, no text of the page is a script or a
# style, and nothing is asked but this service.
OWN = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
PAGE_POLICY = (
    f"{OWN}; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:"
)
# The viewer of the reference brings styles in the elements that it makes.
DOCS_POLICY = (
    f"{OWN}; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; "
    "img-src 'self' data:"
)
OWN_PAGES = {"/": PAGE_POLICY, "/docs": DOCS_POLICY}
ACTIVE = ("text/html", "image/svg+xml", "application/xhtml+xml", "text/xml", "application/xml")


class SecurityHeadersMiddleware:
    """Put the headers on every answer; what is not said to be kept is not kept by anybody."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        page_policy = OWN_PAGES.get(scope["path"])

        async def send_protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                protect(headers, page_policy=page_policy)
                if message["status"] == 304:
                    # It has no type to choose a policy by, and would replace that of the copy.
                    del headers["Content-Security-Policy"]
            await send(message)

        await self._app(scope, receive, send_protected)


def protect(headers: MutableHeaders, *, page_policy: str | None = None) -> None:
    """Complete the headers of an answer.

    Args:
        headers: What it has so far.
        page_policy: The policy of HTML on this path, if there is a page of ours.
    """
    for name, value in FIXED.items():
        headers[name] = value
    headers.setdefault("Cache-Control", "no-store")
    headers["Content-Security-Policy"] = policy_of(
        headers.get("content-type", ""), page_policy=page_policy
    )


def policy_of(content_type: str, *, page_policy: str | None) -> str:
    """The content security policy of an answer."""
    if content_type.lower().startswith(ACTIVE):
        return page_policy or FILE_POLICY
    return DATA_POLICY
