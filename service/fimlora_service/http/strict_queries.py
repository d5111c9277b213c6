"""Query parameters are strict, as bodies are: one that a route does not know is refused.

Ignored, a misspelled ``?bugdet=8`` would be answered as if there were no budget.
"""

from collections.abc import Iterator
from functools import cached_property
from urllib.parse import parse_qsl

from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from starlette.types import Receive, Scope, Send

from fimlora_contract.near_names import did_you_mean
from fimlora_service.http.threads import ThreadRoute


class StrictQueryRoute(ThreadRoute):
    """A route that takes the query parameters it documents, and no others."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse what is not known."""
        if scope["query_string"] and scope["method"] in (self.methods or ()):
            refuse_unknown(scope["query_string"], known=self.query_names)
        await super().handle(scope, receive, send)

    @cached_property
    def query_names(self) -> tuple[str, ...]:
        """What the handler and all that it depends on read."""
        return tuple(dict.fromkeys(names_in(self.dependant)))


def names_in(dependant: Dependant) -> Iterator[str]:
    """Names of the query parameters of a handler and of what it depends on."""
    yield from (parameter.alias for parameter in dependant.query_params)
    for inner in dependant.dependencies:
        yield from names_in(inner)


def refuse_unknown(query: bytes, *, known: tuple[str, ...]) -> None:
    """Check the names in a query.

    Raises:
        RequestValidationError: Names those that are not known.
    """
    given = dict.fromkeys(
        name for name, _ in parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    )
    unknown = [name for name in given if name not in known]
    if unknown:
        allowed = f"there are {list(known)}" if known else "this route takes none"
        raise RequestValidationError(
            [
                {
                    "type": "extra_forbidden",
                    "loc": ("query", name),
                    "msg": f"there is no such parameter; {allowed}{did_you_mean(name, known)}",
                }
                for name in unknown
            ]
        )
