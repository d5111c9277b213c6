"""The asynchronous client: the same flows and calls as `Client`, driven by ``await``."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar, Unpack

from fimlora_client import endpoints, files, flows
from fimlora_client.calls import Call
from fimlora_client.errors import ClientError, ConnectionFailed
from fimlora_client.events import EventReader
from fimlora_client.results import Result
from fimlora_client.settings import read_settings
from fimlora_client.transport import AsyncHttpClient, AsyncTransport
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


class AsyncClient:
    """Talks to a fimlora service without blocking the event loop; see `Client`.

    Files are read and written in the loop's own thread: they are small, adapter weights
    aside, which are not part of a result unless asked for.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        http: AsyncHttpClient | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        context: flows.Context | None = None,
    ) -> None:
        settings = read_settings()
        self.base_url = base_url or settings.url
        self.context = context or flows.Context()
        self.transport = AsyncTransport(
            http, base_url=self.base_url, headers=endpoints.auth(api_key or settings.api_key)
        )
        self.jobs = AsyncJobs(self)
        self.datasets = AsyncDatasets(self)
        self.models = AsyncModels(self)
        self._sleep = sleep

    async def calibrate(
        self,
        request: CalibrationRequest | None = None,
        *,
        idempotency_key: str | None = None,
        **fields: Unpack[endpoints.CalibrationFields],
    ) -> "AsyncJobHandle":
        """Ask for a rank plan; give a request, or its fields as keyword arguments."""
        whole = endpoints.build_request(request, **fields)
        call = endpoints.calibrate(whole, idempotency_key=idempotency_key)
        return AsyncJobHandle(self.jobs, await self.ask(call, Job))

    async def health(self) -> Health:
        """Whether the service can take jobs, and which part fails if it cannot."""
        return await self.run(flows.check_health(endpoints.get("/readyz")))

    async def version(self) -> Version:
        """Versions that matter when results are compared."""
        return await self.ask(endpoints.get("/version"), Version)

    async def ask(self, call: Call, model: type[T]) -> T:
        """Send a call and read its answer."""
        answer: T = await self.run(flows.ask(call, model, self.context))
        return answer

    async def run(self, flow: flows.Flow[T]) -> T:
        """Drive a flow to its end."""
        return await drive(flow, self.transport, self._sleep)

    async def pause(self, seconds: float) -> None:
        """Let some seconds pass."""
        await self._sleep(seconds)

    async def close(self) -> None:
        """Close the connections this client opened."""
        await self.transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


class AsyncJobs:
    """Accepted calibration requests."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def retrieve(self, job_id: str, *, wait: float = 0) -> Job:
        """Where a job stands; ``wait`` lets the service hold the answer until it has ended."""
        return await self._client.ask(endpoints.retrieve_job(job_id, wait=wait), Job)

    async def list(self, *, limit: int | None = None, cursor: str | None = None) -> JobPage:
        """A page of jobs, newest first."""
        return await self._client.ask(endpoints.list_jobs(limit=limit, cursor=cursor), JobPage)

    async def cancel(self, job_id: str) -> Job:
        """Cancel a queued job at once, ask a running one to stop."""
        return await self._client.ask(endpoints.cancel_job(job_id), Job)

    async def wait(
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
        return await self._client.run(
            flows.wait_for_success(
                endpoints.retrieve_job(job_id),
                self._client.context,
                timeout=timeout,
                poll_every=poll_every,
                on_progress=on_progress,
            )
        )

    async def events(self, job_id: str, *, after: str | None = None) -> AsyncIterator[JobEvent]:
        """Every event of a job as it happens, until the job has ended."""
        reader = EventReader(self._client.context, after=after)
        while not reader.ended:
            try:
                call = endpoints.job_events(job_id, after=reader.last_id)
                async with self._client.transport.listen(call) as stream:
                    async for id_, data in stream:
                        yield reader.read(id_, data)
            except ConnectionFailed as error:
                reader.lost(error)
            if not reader.ended:
                await self._client.pause(reader.pause())

    async def result(self, job_id: str) -> CalibrationResult:
        """The result of a job that has succeeded."""
        return await self._client.ask(endpoints.job_result(job_id), CalibrationResult)

    async def download(self, job_id: str, folder: str | Path) -> dict[str, Path]:
        """Fetch the files of a result into a folder, all of them or none.

        Raises:
            DigestMismatch: A file is not what the service said; nothing was written.
        """
        artifacts = (await self.result(job_id)).artifacts
        flow = files.download(job_id, artifacts, folder, self._client.context)
        return await self._client.run(flow)


class AsyncDatasets:
    """Rows to calibrate on."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def upload(self, data: str | Path | Iterable[Mapping[str, Any]]) -> Dataset:
        """Upload a JSONL or Parquet file, or rows; equal content gives the same dataset."""
        return await self._client.ask(endpoints.upload_dataset(data), Dataset)

    async def list(self) -> DatasetPage:
        """All datasets the service knows."""
        return await self._client.ask(endpoints.get("/datasets"), DatasetPage)


class AsyncModels:
    """Base models the operator registered."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def list(self) -> ModelPage:
        """All registered local base models."""
        return await self._client.ask(endpoints.get("/models"), ModelPage)


class AsyncJobHandle:
    """A job and what can be done with it.

    Attributes:
        job: The job as it was when last heard of.
    """

    def __init__(self, jobs: AsyncJobs, job: Job) -> None:
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

    async def refresh(self) -> Job:
        """Ask where the job stands now."""
        self.job = endpoints.keep_cached(self.job, await self._jobs.retrieve(self.id))
        return self.job

    async def wait(
        self,
        *,
        timeout: float = 3600,
        poll_every: float | None = None,
        on_progress: flows.OnProgress | None = None,
    ) -> Result:
        """Wait for the result; see `AsyncJobs.wait` for what it raises."""
        if self.job.result is None:
            job = await self._jobs.wait(
                self.id, timeout=timeout, poll_every=poll_every, on_progress=on_progress
            )
            self.job = endpoints.keep_cached(self.job, job)
        return Result.of(self.job)

    async def result(self) -> Result:
        """The result of the job if it has one by now."""
        job = await self.refresh()
        result = job.result or await self._jobs.result(self.id)
        return Result.of(job.model_copy(update={"result": result}))

    async def cancel(self) -> Job:
        """Cancel the job."""
        self.job = await self._jobs.cancel(self.id)
        return self.job

    def events(self, *, after: str | None = None) -> AsyncIterator[JobEvent]:
        """Every event of the job as it happens, until it has ended."""
        return self._jobs.events(self.id, after=after)

    async def download(self, folder: str | Path) -> dict[str, Path]:
        """Fetch the files of the result into a folder."""
        return await self._jobs.download(self.id, folder)


async def drive(
    flow: flows.Flow[T],
    transport: AsyncTransport,
    sleep: Callable[[float], Awaitable[object]],
) -> T:
    """Do what a flow asks for, step by step, and return what it returns."""
    try:
        step = next(flow)
        while True:
            if isinstance(step, flows.Pause):
                await sleep(step.seconds)
                step = next(flow)
                continue
            try:
                answer = await transport.send(step)
            except ClientError as error:
                step = flow.throw(error)
            else:
                step = flow.send(answer)
    except StopIteration as end:
        value: T = end.value
        return value
