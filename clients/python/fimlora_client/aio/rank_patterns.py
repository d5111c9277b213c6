"""Rank patterns for CI and clusters: by content, by inputs and by name."""

from typing import cast

from fimlora_client.aio.sender import AsyncSender
from fimlora_client.bodies import as_json, budget_text, checked
from fimlora_client.calls import JSON, Call, Params, given, route
from fimlora_client.patterns import FetchedPattern, Format, pin_route, read_pattern
from fimlora_contract.budgets import Budget
from fimlora_contract.rank_patterns import Pin, PinPage
from fimlora_contract.requests import PinRequest


class AsyncRankPatterns:
    """Results by content, by inputs and by name; looking one up never starts work.

    Each look-up takes a ``format``, whose words the pattern is written in (``adalora`` needs the
    optimizer ``steps`` of the training, and ``accumulation`` where batches are split), and the
    ``etag`` of a copy: while that copy is still right, the answer is ``unchanged`` and has no text.
    """

    def __init__(self, sender: AsyncSender) -> None:
        self._sender = sender

    async def retrieve(
        self,
        digest: str,
        *,
        format: Format = "json",
        etag: str | None = None,
        steps: int | None = None,
        accumulation: int | None = None,
    ) -> FetchedPattern:
        """The result with this content address; it never changes.

        ``GET /rank-patterns/{digest}``
        """
        asked = _asked(format, steps, accumulation)
        return await self._get(route("rank-patterns", digest), asked, etag=etag)

    async def find(
        self,
        model: str,
        dataset: str,
        *,
        budget: int | str | Budget | None = None,
        format: Format = "json",
        etag: str | None = None,
        steps: int | None = None,
        accumulation: int | None = None,
    ) -> FetchedPattern:
        """The newest result for a model and a dataset, and a budget if one is given.

        ``GET /rank-patterns?model=&dataset=&budget=``
        """
        wanted = None if budget is None else budget_text(budget)
        params = given(model=model, dataset=dataset, budget=wanted)
        asked = params | _asked(format, steps, accumulation)
        return await self._get("/rank-patterns", asked, etag=etag)

    async def pinned(
        self,
        name: str,
        tag: str,
        *,
        format: Format = "json",
        etag: str | None = None,
        steps: int | None = None,
        accumulation: int | None = None,
    ) -> FetchedPattern:
        """The result that a pin stands for.

        ``GET /rank-patterns/{name}/{tag}``
        """
        asked = _asked(format, steps, accumulation)
        return await self._get(pin_route(name, tag), asked, etag=etag)

    async def pin(
        self, name: str, tag: str, *, digest: str | None = None, job_id: str | None = None
    ) -> Pin:
        """Let a name and tag stand for a result: its digest, or the job that made it.

        ``PUT /rank-patterns/{name}/{tag}``
        """
        fields = {"digest": digest, "job_id": job_id}
        body = as_json(checked(PinRequest, {k: v for k, v in fields.items() if v is not None}))
        path = pin_route(name, tag)
        return await self._sender.ask(Call("PUT", path, headers=JSON, content=body), Pin)

    async def history(self, name: str, tag: str) -> Pin:
        """What a pin stands for and stood for, the newest first.

        ``GET /rank-patterns/{name}/{tag}/history``
        """
        return await self._sender.ask(Call("GET", pin_route(name, tag, "history")), Pin)

    async def pins(
        self, *, limit: int | None = None, cursor: str | None = None, tenant: str | None = None
    ) -> PinPage:
        """A page of what names stand for: your own, and those that all share, by name.

        With an admin key, what one tenant has and shares.

        ``GET /pins``
        """
        params = given(limit=limit, cursor=cursor, tenant=tenant)
        return await self._sender.ask(Call("GET", "/pins", params=params), PinPage)

    async def _get(self, path: str, params: Params, *, etag: str | None) -> FetchedPattern:
        headers = {"if-none-match": etag} if etag else {}
        call = Call("GET", path, params=params, headers=headers)
        return read_pattern(await self._sender.send(call), cast("Format", params["format"]))


def _asked(format: Format, steps: int | None, accumulation: int | None) -> Params:
    """The query that says in whose words; numbers are written out whole."""
    numbers = {"steps": steps, "accumulation": accumulation}
    return {"format": format} | {k: str(n) for k, n in numbers.items() if n is not None}
