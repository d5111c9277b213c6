# Made from aio/client.py by `make docs`; edit that file.
"""The client: where a conversation with the service begins."""

import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Self, Unpack

from fimlora_client.addresses import base_url_of
from fimlora_client.blocking.adapters import Adapters
from fimlora_client.blocking.catalogues import Cache, Datasets, Models, Workers
from fimlora_client.blocking.evaluations import EvaluationHandle, Evaluations
from fimlora_client.blocking.handle import JobHandle
from fimlora_client.blocking.jobs import Jobs
from fimlora_client.blocking.keys import Keys
from fimlora_client.blocking.rank_patterns import RankPatterns
from fimlora_client.blocking.sender import Sender
from fimlora_client.blocking.transport import HttpClient, Transport
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


class Client:
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
        http: HttpClient | None = None,
        sleep: Callable[[float], object] = time.sleep,
        context: Context | None = None,
    ) -> None:
        settings = read_settings()
        self.base_url = base_url_of(base_url or settings.url)
        key = settings.key_for(base_url or None) if api_key is None else api_key
        headers = {"authorization": f"Bearer {key}"} if key else {}
        transport = Transport(http, base_url=self.base_url, headers=headers)
        self._sender = Sender(transport, sleep, context or Context())
        self.jobs = Jobs(self._sender)
        self.evaluations = Evaluations(self._sender)
        self.rank_patterns = RankPatterns(self._sender)
        self.datasets = Datasets(self._sender)
        self.adapters = Adapters(self._sender)
        self.models = Models(self._sender)
        self.workers = Workers(self._sender)
        self.cache = Cache(self._sender)
        self.keys = Keys(self._sender)

    def calibrate(
        self,
        request: CalibrationRequest | None = None,
        *,
        idempotency_key: str | None = None,
        wait: int = 0,
        **fields: Unpack[CalibrationFields],
    ) -> JobHandle:
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
        return JobHandle(self.jobs, self._sender.ask(call, Job))

    def estimate(
        self, request: CalibrationRequest | None = None, **fields: Unpack[CalibrationFields]
    ) -> Estimate:
        """What `calibrate` would do, fetch and need; nothing is queued.

        ``POST /estimate``
        """
        body = as_json(build_request(request, **fields))
        call = Call("POST", "/estimate", headers=JSON, content=body)
        return self._sender.ask(call, Estimate)

    def evaluate(
        self,
        request: EvaluationRequest | None = None,
        *,
        idempotency_key: str | None = None,
        wait: int = 0,
        **fields: Unpack[EvaluationFields],
    ) -> EvaluationHandle:
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
        return EvaluationHandle(self.jobs, self._sender.ask(call, Evaluation))

    def compare(
        self,
        request: ComparisonRequest | None = None,
        *,
        idempotency_key: str | None = None,
        wait: int = 0,
        **fields: Unpack[ComparisonFields],
    ) -> Job:
        """Ask how alike the plans of several methods are; give a request, or its fields.

        ``POST /compare``; nothing is trained. `Jobs.wait` waits for the job, whose result
        is a `ComparisonResult`; `Jobs.compare` answers at once from a job that has measured.

        Raises:
            ValidationFailed: A field is wrong.
        """
        headers = JSON | {"idempotency-key": idempotency_key or uuid.uuid4().hex}
        if wait:
            headers |= {"prefer": f"wait={wait}"}
        body = as_json(for_a_job(build_comparison(request, **fields)))
        call = Call("POST", "/compare", headers=headers, content=body, wait_s=wait)
        return self._sender.ask(call, Job)

    def health(self) -> Health:
        """Whether the service can take jobs, and which part fails if it cannot.

        ``GET /readyz``
        """
        # Once: an answer of 503 is what we want to know.
        return read_health(self._sender.send(Call("GET", "/readyz", is_final=True)))

    def liveness(self) -> Health:
        """Whether the process of the service runs, whatever it depends on.

        ``GET /healthz``
        """
        return self._sender.ask(Call("GET", "/healthz", is_final=True), Health)

    def version(self) -> Version:
        """Versions that matter when results are compared.

        ``GET /version``
        """
        return self._sender.ask(Call("GET", "/version"), Version)

    def metrics(self) -> str:
        """Figures of jobs, queues and workers in the words of Prometheus.

        ``GET /metrics``
        """
        return (self._sender.do(Call("GET", "/metrics"))).content.decode()

    def watch(self, on_answer: Callable[[Call, Answer], None]) -> None:
        """Be told of every exchange with the service from now on."""
        self._sender.context = replace(self._sender.context, on_answer=on_answer)

    def watch_pauses(self, on_pause: Callable[[Answer, float], None]) -> None:
        """Be told from now on what was refused for now, and for how many seconds it is waited."""
        self._sender.context = replace(self._sender.context, on_pause=on_pause)

    def close(self) -> None:
        """Close the connections this client opened."""
        self._sender.transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
