"""Routes that let nobody in without the scope they state."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi.params import Depends
from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Send
from starlette.types import Scope as Request

from fimlora_contract.keys import Scope
from fimlora_jobs.logs import log_context
from fimlora_service import errors
from fimlora_service.http.dependencies import problems
from fimlora_service.http.openapi import SCHEME
from fimlora_service.http.strict_queries import StrictQueryRoute
from fimlora_service.http.threads import ThreadRoute
from fimlora_service.keys.gate import Gate
from fimlora_service.keys.principal import MAKES_FIRST_KEY

REFUSALS = (
    errors.Unauthenticated,
    errors.Forbidden,
    errors.RateLimited,
    errors.RedisUnavailable,
)
Responses = Mapping[int | str, dict[str, Any]]


class GuardedRoute(ThreadRoute):
    """A route that states, by `needs`, the scope without which it refuses.

    It refuses before anything of the request but its head is read.
    """

    def __init__(
        self,
        path: str,
        endpoint: Callable[..., Any],
        *,
        dependencies: Sequence[Depends] | None = None,
        responses: Responses | None = None,
        openapi_extra: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        stated = [s for each in dependencies or () for s in getattr(each, "scopes", None) or ()]
        assert len(stated) == 1, f"{path} states {len(stated)} scopes"
        self.scope = Scope(stated[0])
        self.makes_first_key = any(each is MAKES_FIRST_KEY for each in dependencies or ())
        super().__init__(
            path,
            endpoint,
            dependencies=dependencies,
            responses=with_refusals(responses or {}),
            openapi_extra={"security": [{SCHEME: stated}], **(openapi_extra or {})},
            **options,
        )

    async def handle(self, scope: Request, receive: Receive, send: Send) -> None:
        """Answer, or refuse who may not come in."""
        if scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        gate: Gate = scope["state"]["gate"]
        admission = await gate.admit(scope, self.scope, makes_first_key=self.makes_first_key)
        scope["state"]["principal"] = admission.principal

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(admission.headers)
            await send(message)

        with log_context(tenant=admission.principal.tenant):
            await super().handle(
                scope, receive, send_with_headers if admission.headers else send
            )


class ScopedRoute(GuardedRoute, StrictQueryRoute):
    """One that takes the query parameters it documents, and no others."""


def with_refusals(responses: Responses) -> dict[int | str, dict[str, Any]]:
    """Documented answers, with those to whom may not come in."""
    documented = dict(responses)
    for status, refusal in problems(*REFUSALS).items():
        known = documented.get(status)
        if known is None:
            documented[status] = refusal
        elif refusal["description"] not in known["description"]:
            text = f"{refusal['description']} {known['description']}"
            documented[status] = known | {"description": text}
    return documented
