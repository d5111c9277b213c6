"""The client: where a conversation with the service begins."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Self, Unpack

from fimlora_client.addresses import base_url_of
from fimlora_client.aio.adapters import AsyncAdapters
from fimlora_client.aio.catalogues import AsyncCache, AsyncDatasets, AsyncModels, AsyncWorkers
from fimlora_client.aio.evaluations import AsyncEvaluationHandle, AsyncEvaluations
from fimlora_client.aio.handle import AsyncJobHandle
from fimlora_client.aio.jobs import AsyncJobs
from fimlora_client.aio.keys import AsyncKeys
from fimlora_client.aio.rank_patterns import AsyncRankPatterns
from fimlora_client.aio.sender import AsyncSender
from fimlora_client.aio.transport import AsyncHttpClient, AsyncTransport
from fimlora_client.bodies import (
    CalibrationFields,
    ComparisonFields,
    EvaluationFields,
    as_json,
    build_comparison,
    build_evaluation,
    build_request,
    for_a_job,
)
from fimlora_client.calls import JSON, Answer, Call, read_health
from fimlora_client.context import Context
from fimlora_client.settings import read_settings
from fimlora_contract.comparison_requests import ComparisonRequest
from fimlora_contract.estimates import Estimate
from fimlora_contract.evaluations import Evaluation, EvaluationRequest
from fimlora_contract.jobs import Job
from fimlora_contract.requests import CalibrationRequest
from fimlora_contract.service import Health, Version


class AsyncClient:
    """Talks to a fimlora service; use it in a ``with`` block, or close it.

    Args:
        base_url: Where the service is, ``localhost:8000`` or ``https://host/prefix``;
            ``FIMLORA_URL`` when not given.
        api_key: Sent as a bearer token; ``FIMLORA_API_KEY`` when not given, none when empty.
        http: A connected HTTP client to use instead of one of our own.
        sleep: Lets seconds pass between polls and retries.
        context: Retry policy, clock and randomness.

    Attributes:
        jobs: Accepted requests of every kind.
        evaluations: Those that train, to find out whether ranks help.
        rank_patterns: Results by content, by inputs and by name.
        datasets: Rows to calibrate on.
        adapters: Trained adapters.
        models: Base models the operator registered.
        workers: The workers that are alive.
        cache: What earlier calibrations have left.
        keys: API keys, for who has an admin key.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        http: AsyncHttpClient | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        context: Context | None = None,
    ) -> None:
        settings = read_settings()
        self.base_url = base_url_of(base_url or settings.url)
        key = settings.key_for(base_url or None) if api_key is None else api_key
        headers = {"authorization": f"Bearer {key}"} if key else {}
        transport = AsyncTransport(http, base_url=self.base_url, headers=headers)
        self._sender = AsyncSender(transport, sleep, context or Context())
        self.jobs = AsyncJobs(self._sender)
        self.evaluations = AsyncEvaluations(self._sender)
        self.rank_patterns = AsyncRankPatterns(self._sender)
        self.datasets = AsyncDatasets(self._sender)
        self.adapters = AsyncAdapters(self._sender)
        self.models = AsyncModels(self._sender)
        self.workers = AsyncWorkers(self._sender)
        self.cache = AsyncCache(self._sender)
        self.keys = AsyncKeys(self._sender)

    async def calibrate(
        self,
        request: CalibrationRequest | None = None,
        *,
        idempotency_key: str | None = None,
        wait: int = 0,
        **fields: Unpack[CalibrationFields],
    ) -> AsyncJobHandle:
        """Ask for a rank plan; give a request, or its fields as keyword arguments.

        ``POST /calibrate``; with ``wait`` the service holds the answer for up to so many
        seconds, at most 60, until the job has ended.

        Raises:
            ValidationFailed: A field is wrong.
        """
        headers = JSON | {"idempotency-key": idempotency_key or uuid.uuid4().hex}
        if wait:
            headers |= {"prefer": f"wait={wait}"}
        body = as_json(for_a_job(build_request(request, **fields)))
        call = Call("POST", "/calibrate", headers=headers, content=body, wait_s=wait)
        return AsyncJobHandle(self.jobs, await self._sender.ask(call, Job))

    async def estimate(
        self, request: CalibrationRequest | None = None, **fields: Unpack[CalibrationFields]
    ) -> Estimate:
        """What `calibrate` would do, fetch and need; nothing is queued.

        ``POST /estimate``
        """
        body = as_json(build_request(request, **fields))
        call = Call("POST", "/estimate", headers=JSON, content=body)
        return await self._sender.ask(call, Estimate)

    async def evaluate(
        self,
        request: EvaluationRequest | None = None,
        *,
        idempotency_key: str | None = None,
        wait: int = 0,
        **fields: Unpack[EvaluationFields],
    ) -> AsyncEvaluationHandle:
        """Ask whether ranks help on a task; give a request, or its fields as keyword arguments.

        ``POST /evaluations``; it trains plans beside uniform and random ranks, which takes
        minutes to hours. With ``wait`` the service holds the answer for up to so many
        seconds, at most 60, until the evaluation has ended.

        Raises:
            ValidationFailed: A field is wrong.
        """
        headers = JSON | {"idempotency-key": idempotency_key or uuid.uuid4().hex}
        if wait:
            headers |= {"prefer": f"wait={wait}"}
        body = as_json(for_a_job(build_evaluation(request, **fields)))
        call = Call("POST", "/evaluations", headers=headers, content=body, wait_s=wait)
        return AsyncEvaluationHandle(self.jobs, await self._sender.ask(call, Evaluation))

    async def compare(
        self,
        request: ComparisonRequest | None = None,
        *,
        idempotency_key: str | None = None,
        wait: int = 0,
        **fields: Unpack[ComparisonFields],
    ) -> Job:
        """Ask how alike the plans of several methods are; give a request, or its fields.

        ``POST /compare``; nothing is trained. `AsyncJobs.wait` waits for the job, whose result
        is a `ComparisonResult`; `AsyncJobs.compare` answers at once from a job that has measured.

        Raises:
            ValidationFailed: A field is wrong.
        """
        headers = JSON | {"idempotency-key": idempotency_key or uuid.uuid4().hex}
        if wait:
            headers |= {"prefer": f"wait={wait}"}
        body = as_json(for_a_job(build_comparison(request, **fields)))
        call = Call("POST", "/compare", headers=headers, content=body, wait_s=wait)
        return await self._sender.ask(call, Job)

    async def health(self) -> Health:
        """Whether the service can take jobs, and which part fails if it cannot.

        ``GET /readyz``
        """
        # Once: an answer of 503 is what we want to know.
        return read_health(await self._sender.send(Call("GET", "/readyz", is_final=True)))

    async def liveness(self) -> Health:
        """Whether the process of the service runs, whatever it depends on.

        ``GET /healthz``
        """
        return await self._sender.ask(Call("GET", "/healthz", is_final=True), Health)

    async def version(self) -> Version:
        """Versions that matter when results are compared.

        ``GET /version``
        """
        return await self._sender.ask(Call("GET", "/version"), Version)

    async def metrics(self) -> str:
        """Figures of jobs, queues and workers in the words of Prometheus.

        ``GET /metrics``
        """
        return (await self._sender.do(Call("GET", "/metrics"))).content.decode()

    def watch(self, on_answer: Callable[[Call, Answer], None]) -> None:
        """Be told of every exchange with the service from now on."""
        self._sender.context = replace(self._sender.context, on_answer=on_answer)

    def watch_pauses(self, on_pause: Callable[[Answer, float], None]) -> None:
        """Be told from now on what was refused for now, and for how many seconds it is waited."""
        self._sender.context = replace(self._sender.context, on_pause=on_pause)

    async def close(self) -> None:
        """Close the connections this client opened."""
        await self._sender.transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()
