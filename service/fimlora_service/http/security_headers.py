"""Headers that tell a browser what not to do with an answer; on every answer, errors too.

What the service sends is data. A page of another site can neither frame nor embed nor read it,
and a result's report or picture that is opened in a browser runs no script, whatever it holds.
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
CDN = "https://cdn.jsdelivr.net"
# Swagger UI and ReDoc, from where the framework's pages take them; they ask only this service.
DOCS_POLICY = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    f"script-src 'self' 'unsafe-inline' {CDN}; connect-src 'self'; worker-src blob:; "
    f"style-src 'self' 'unsafe-inline' {CDN} https://fonts.googleapis.com; "
    "font-src https://fonts.gstatic.com; "
    "img-src 'self' data: https://fastapi.tiangolo.com https://cdn.redoc.ly"
)
DOCS = frozenset({"/docs", "/docs/oauth2-redirect", "/redoc"})
ACTIVE = ("text/html", "image/svg+xml", "application/xhtml+xml", "text/xml", "application/xml")


class SecurityHeadersMiddleware:
    """Put the headers on every answer; what is not said to be kept is not kept by anybody."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_docs = scope["path"] in DOCS

        async def send_protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                protect(MutableHeaders(scope=message), is_docs=is_docs)
            await send(message)

        await self._app(scope, receive, send_protected)


def protect(headers: MutableHeaders, *, is_docs: bool = False) -> None:
    """Complete the headers of an answer."""
    for name, value in FIXED.items():
        headers[name] = value
    headers.setdefault("Cache-Control", "no-store")
    headers["Content-Security-Policy"] = policy_of(
        headers.get("content-type", ""), is_docs=is_docs
    )


def policy_of(content_type: str, *, is_docs: bool) -> str:
    """The content security policy of an answer."""
    if content_type.lower().startswith(ACTIVE):
        return DOCS_POLICY if is_docs else FILE_POLICY
    return DATA_POLICY
