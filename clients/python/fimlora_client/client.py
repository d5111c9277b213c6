"""The blocking client."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar, Unpack

from fimlora_client import endpoints, files, flows
from fimlora_client.calls import Call
from fimlora_client.errors import ClientError, ConnectionFailed
from fimlora_client.events import EventReader
from fimlora_client.results import Result
from fimlora_client.settings import read_settings
from fimlora_client.transport import HttpClient, Transport
from fimlora_contract.jobs import (
    CalibrationResult,
    Dataset,
    DatasetPage,
    Health,
    Job,
    JobEvent,
    JobPage,
    ModelPage,
    Version,
)
from fimlora_contract.requests import CalibrationRequest

T = TypeVar("T")


class Client:
    """Talks to a fimlora service.

    Args:
        base_url: Where the service is; ``FIMLORA_URL`` when not given.
        api_key: Sent as a bearer token; ``FIMLORA_API_KEY`` when not given.
        http: A connected HTTP client to use instead of one of our own.
        sleep: Lets seconds pass between polls and retries.
        context: Retry policy, clock and randomness.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        http: HttpClient | None = None,
        sleep: Callable[[float], object] = time.sleep,
        context: flows.Context | None = None,
    ) -> None:
        settings = read_settings()
        self.base_url = base_url or settings.url
        self.context = context or flows.Context()
        self.transport = Transport(
            http, base_url=self.base_url, headers=endpoints.auth(api_key or settings.api_key)
        )
        self.jobs = Jobs(self)
        self.datasets = Datasets(self)
        self.models = Models(self)
        self._sleep = sleep

    def calibrate(
        self,
        request: CalibrationRequest | None = None,
        *,
        idempotency_key: str | None = None,
        **fields: Unpack[endpoints.CalibrationFields],
    ) -> "JobHandle":
        """Ask for a rank plan; give a request, or its fields as keyword arguments."""
        whole = endpoints.build_request(request, **fields)
        call = endpoints.calibrate(whole, idempotency_key=idempotency_key)
        return JobHandle(self.jobs, self.ask(call, Job))

    def health(self) -> Health:
        """Whether the service can take jobs, and which part fails if it cannot."""
        return self.run(flows.check_health(endpoints.get("/readyz")))

    def version(self) -> Version:
        """Versions that matter when results are compared."""
        return self.ask(endpoints.get("/version"), Version)

    def ask(self, call: Call, model: type[T]) -> T:
        """Send a call and read its answer."""
        answer: T = self.run(flows.ask(call, model, self.context))
        return answer

    def run(self, flow: flows.Flow[T]) -> T:
        """Drive a flow to its end."""
        return drive(flow, self.transport, self._sleep)

    def pause(self, seconds: float) -> None:
        """Let some seconds pass."""
        self._sleep(seconds)

    def close(self) -> None:
        """Close the connections this client opened."""
        self.transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Jobs:
    """Accepted calibration requests."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def retrieve(self, job_id: str, *, wait: float = 0) -> Job:
        """Where a job stands; ``wait`` lets the service hold the answer until it has ended."""
        return self._client.ask(endpoints.retrieve_job(job_id, wait=wait), Job)

    def list(self, *, limit: int | None = None, cursor: str | None = None) -> JobPage:
        """A page of jobs, newest first."""
        return self._client.ask(endpoints.list_jobs(limit=limit, cursor=cursor), JobPage)

    def cancel(self, job_id: str) -> Job:
        """Cancel a queued job at once, ask a running one to stop."""
        return self._client.ask(endpoints.cancel_job(job_id), Job)

    def wait(
        self,
        job_id: str,
        *,
        timeout: float = 3600,
        poll_every: float | None = None,
        on_progress: flows.OnProgress | None = None,
    ) -> Job:
        """Wait until a job has succeeded.

        Raises:
            WaitTimeout: It has not ended after ``timeout`` seconds.
            JobFailed: It failed.
            JobCanceled: It was canceled.
        """
        return self._client.run(
            flows.wait_for_success(
                endpoints.retrieve_job(job_id),
                self._client.context,
                timeout=timeout,
                poll_every=poll_every,
                on_progress=on_progress,
            )
        )

    def events(self, job_id: str, *, after: str | None = None) -> Iterator[JobEvent]:
        """Every event of a job as it happens, until the job has ended."""
        reader = EventReader(self._client.context, after=after)
        while not reader.ended:
            try:
                call = endpoints.job_events(job_id, after=reader.last_id)
                with self._client.transport.listen(call) as stream:
                    for id_, data in stream:
                        yield reader.read(id_, data)
            except ConnectionFailed as error:
                reader.lost(error)
            if not reader.ended:
                self._client.pause(reader.pause())

    def result(self, job_id: str) -> CalibrationResult:
        """The result of a job that has succeeded."""
        return self._client.ask(endpoints.job_result(job_id), CalibrationResult)

    def download(self, job_id: str, folder: str | Path) -> dict[str, Path]:
        """Fetch the files of a result into a folder, all of them or none.

        Raises:
            DigestMismatch: A file is not what the service said; nothing was written.
        """
        artifacts = self.result(job_id).artifacts
        flow = files.download(job_id, artifacts, folder, self._client.context)
        return self._client.run(flow)


class Datasets:
    """Rows to calibrate on."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def upload(self, data: str | Path | Iterable[Mapping[str, Any]]) -> Dataset:
        """Upload a JSONL or Parquet file, or rows; equal content gives the same dataset."""
        return self._client.ask(endpoints.upload_dataset(data), Dataset)

    def list(self) -> DatasetPage:
        """All datasets the service knows."""
        return self._client.ask(endpoints.get("/datasets"), DatasetPage)


class Models:
    """Base models the operator registered."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self) -> ModelPage:
        """All registered local base models."""
        return self._client.ask(endpoints.get("/models"), ModelPage)


class JobHandle:
    """A job and what can be done with it.

    Attributes:
        job: The job as it was when last heard of.
    """

    def __init__(self, jobs: Jobs, job: Job) -> None:
        self._jobs = jobs
        self.job = job

    @property
    def id(self) -> str:
        """The job's id."""
        return self.job.id

    @property
    def cached(self) -> bool:
        """Whether the request had been answered before."""
        return self.job.cached

    def refresh(self) -> Job:
        """Ask where the job stands now."""
        self.job = endpoints.keep_cached(self.job, self._jobs.retrieve(self.id))
        return self.job

    def wait(
        self,
        *,
        timeout: float = 3600,
        poll_every: float | None = None,
        on_progress: flows.OnProgress | None = None,
    ) -> Result:
        """Wait for the result; see `Jobs.wait` for what it raises."""
        if self.job.result is None:
            job = self._jobs.wait(
                self.id, timeout=timeout, poll_every=poll_every, on_progress=on_progress
            )
            self.job = endpoints.keep_cached(self.job, job)
        return Result.of(self.job)

    def result(self) -> Result:
        """The result of the job if it has one by now."""
        job = self.refresh()
        result = job.result or self._jobs.result(self.id)
        return Result.of(job.model_copy(update={"result": result}))

    def cancel(self) -> Job:
        """Cancel the job."""
        self.job = self._jobs.cancel(self.id)
        return self.job

    def events(self, *, after: str | None = None) -> Iterator[JobEvent]:
        """Every event of the job as it happens, until it has ended."""
        return self._jobs.events(self.id, after=after)

    def download(self, folder: str | Path) -> dict[str, Path]:
        """Fetch the files of the result into a folder."""
        return self._jobs.download(self.id, folder)


def drive(flow: flows.Flow[T], transport: Transport, sleep: Callable[[float], object]) -> T:
    """Do what a flow asks for, step by step, and return what it returns."""
    try:
        step = next(flow)
        while True:
            if isinstance(step, flows.Pause):
                sleep(step.seconds)
                step = next(flow)
                continue
            try:
                answer = transport.send(step)
            except ClientError as error:
                step = flow.throw(error)
            else:
                step = flow.send(answer)
    except StopIteration as end:
        value: T = end.value
        return value
