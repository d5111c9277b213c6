# Made from aio/jobs.py by `make docs`; edit that file.
"""Accepted requests of every kind: where they stand, and what became of them."""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Unpack

from fimlora_client.blocking.sender import Sender
from fimlora_client.bodies import (
    JobComparisonFields,
    PlanFields,
    SweepFields,
    as_json,
    checked,
)
from fimlora_client.calls import JSON, Call, given, read_answer, route
from fimlora_client.errors import ConnectionFailed, WaitTimeout, failure_of
from fimlora_client.events import EventReader
from fimlora_client.files import Download, OnFile
from fimlora_client.polling import OnProgress, Pace
from fimlora_client.retries import is_rate_limited
from fimlora_client.signatures import verify_files, verify_folder
from fimlora_client.watching import OnAway, Watch
from fimlora_contract.artifacts import Artifact, ArtifactPage
from fimlora_contract.comparison_requests import JobComparisonRequest
from fimlora_contract.comparisons import JobComparison
from fimlora_contract.jobs import (
    CalibrationResult,
    Job,
    JobEvent,
    JobEventPage,
    JobKind,
    JobPage,
    JobStatus,
)
from fimlora_contract.plans import Plan, PlanDraft
from fimlora_contract.rank_patterns import RankDiff
from fimlora_contract.requests import PlanRequest
from fimlora_contract.sweeps import Sweep, SweepRequest
from fimlora_contract.webhooks import WebhookTries

DRAWING_S = 60.0  # a page is drawn when it is asked for, after those that came before


class Jobs:
    """Accepted requests of every kind."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender

    def retrieve(self, job_id: str, *, wait: float = 0) -> Job:
        """Where a job stands; ``wait`` lets the service hold the answer until it has ended.

        ``GET /jobs/{id}``
        """
        call = Call("GET", route("jobs", job_id), params=given(wait=wait or None), wait_s=wait)
        return self._sender.ask(call, Job)

    def list(
        self,
        *,
        limit: int | None = None,
        cursor: str | None = None,
        kind: JobKind | str | None = None,
        status: JobStatus | str | Sequence[JobStatus | str] | None = None,
        labels: Mapping[str, str] | None = None,
        model: str | None = None,
        tenant: str | None = None,
    ) -> JobPage:
        """A page of jobs of all kinds or of one, newest first; with an admin key, of one tenant.

        Those in a status or one of several, with each of some labels, of a base model: what is
        given must hold.

        ``GET /jobs``
        """
        statuses = [status] if isinstance(status, str) else status
        wanted = [f"{name}={value}" for name, value in (labels or {}).items()]
        params = given(
            limit=limit, cursor=cursor, kind=kind, status=statuses and [*map(str, statuses)],
            label=wanted or None, model=model, tenant=tenant,
        )  # fmt: skip
        call = Call("GET", "/jobs", params=params)
        return self._sender.ask(call, JobPage)

    def cancel(self, job_id: str) -> Job:
        """Cancel a queued job at once, ask a running one to stop.

        ``POST /jobs/{id}/cancel``
        """
        return self._sender.ask(Call("POST", route("jobs", job_id, "cancel")), Job)

    def retry(self, job_id: str) -> Job:
        """Queue the request of a failed or canceled job once more; answers the new job.

        ``POST /jobs/{id}/retry``
        """
        # One key for this call, however often it is sent.
        headers = {"idempotency-key": uuid.uuid4().hex}
        call = Call("POST", route("jobs", job_id, "retry"), headers=headers)
        return self._sender.ask(call, Job)

    def delete(self, job_id: str) -> None:
        """Forget a job that has ended; results that are pinned or shared stay.

        ``DELETE /jobs/{id}``
        """
        self._sender.do(Call("DELETE", route("jobs", job_id)))

    def allocate(self, job_id: str, **fields: Unpack[PlanFields]) -> Plan:
        """Another plan from what a job has measured, at once: no queue and no device.

        ``POST /jobs/{id}/allocate``
        """
        body = as_json(checked(PlanRequest, fields))
        path = route("jobs", job_id, "allocate")
        return self._sender.ask(Call("POST", path, headers=JSON, content=body), Plan)

    def draft(self, job_id: str, **fields: Unpack[PlanFields]) -> PlanDraft:
        """The ranks alone of another plan, several times as fast: for sliders and searches.

        ``POST /jobs/{id}/allocate`` with ``Prefer: return=minimal``
        """
        body = as_json(checked(PlanRequest, fields))
        headers = JSON | {"prefer": "return=minimal"}
        call = Call("POST", route("jobs", job_id, "allocate"), headers=headers, content=body)
        return self._sender.ask(call, PlanDraft)

    def compare(self, job_id: str, **fields: Unpack[JobComparisonFields]) -> JobComparison:
        """How alike the plans of several methods are, from what a job has measured, at once.

        ``POST /jobs/{id}/compare``
        """
        body = as_json(checked(JobComparisonRequest, fields))
        path = route("jobs", job_id, "compare")
        return self._sender.ask(Call("POST", path, headers=JSON, content=body), JobComparison)

    def sweep(self, job_id: str, **fields: Unpack[SweepFields]) -> Sweep:
        """Plans under other aggregations, fewer batches and other floors, at once.

        ``POST /jobs/{id}/sweep``
        """
        body = as_json(checked(SweepRequest, fields))
        path = route("jobs", job_id, "sweep")
        return self._sender.ask(Call("POST", path, headers=JSON, content=body), Sweep)

    def diff(self, job_id: str, other_id: str) -> RankDiff:
        """How the ranks of two results differ, per module and in sum.

        ``GET /jobs/{id}/diff/{other}``
        """
        return self._sender.ask(Call("GET", route("jobs", job_id, "diff", other_id)), RankDiff)

    def wait(
        self,
        job_id: str,
        *,
        timeout: float = 3600,
        poll_every: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Job:
        """Wait until a job has succeeded.

        A rate limit only makes it slower: many who wait with one key share what it may ask.

        Raises:
            WaitTimeout: It has not ended after ``timeout`` seconds.
            JobFailed: It failed; the exception carries the job.
            JobCanceled: It was canceled.
        """
        context = self._sender.context
        deadline = context.clock() + timeout
        pace = Pace(poll_every)
        call = Call("GET", route("jobs", job_id), is_poll=True)
        stands = "hidden by the rate limit of the key"
        while True:
            answer = self._sender.send(call)
            if is_rate_limited(answer):
                pause = context.pause_asked_for(answer)
            else:
                job = read_answer(answer, Job)
                if on_progress:
                    on_progress(job)
                if job.status is JobStatus.SUCCEEDED:
                    return job
                if job.status.is_final:
                    raise failure_of(job)
                stands, pause = job.status, pace.next(context.hint(answer))
            left = deadline - context.clock()
            if left <= 0:
                raise WaitTimeout(f"job {job_id} is still {stands} after {timeout:g} s")
            self._sender.pause(min(pause, left))

    def watch(
        self,
        *job_ids: str,
        poll_every: float | None = None,
        patience: float = 300,
        on_away: OnAway | None = None,
    ) -> Iterator[Job]:
        """Each of some jobs whenever it has changed, until all have ended.

        ``GET /jobs/{id}``, asked again. A service that is away, once it has answered, is waited
        for: ``on_away`` is told of every try that failed.

        Raises:
            JobNotFound: There is no such job, or no longer.
            ConnectionFailed: The service has been away for ``patience`` seconds.
        """
        watch = Watch(job_ids, self._sender.context, poll_every=poll_every, patience=patience)
        while watch.open:
            try:
                for job_id in watch.open:
                    call = Call(
                        "GET", route("jobs", job_id), is_poll=True, is_final=watch.is_known
                    )
                    if job := watch.read(job_id, self._sender.send(call)):
                        yield job
            except ConnectionFailed as error:
                watch.lost(error)
                if on_away:
                    on_away(error)
            if watch.open:
                self._sender.pause(watch.pause())

    def events(self, job_id: str, *, after: str | None = None) -> Iterator[JobEvent]:
        """Every event of a job as it happens, until the job has ended.

        ``GET /jobs/{id}/events`` as a stream, taken up again when the connection is lost.
        """
        reader = EventReader(self._sender.context, after=after)
        while not reader.ended:
            headers = {"accept": "text/event-stream"} | reader.position
            call = Call("GET", route("jobs", job_id, "events"), headers=headers)
            try:
                with self._sender.listen(call) as stream:
                    for id_, data in stream:
                        yield reader.read(id_, data)
            except ConnectionFailed as error:
                reader.lost(error)
            if not reader.ended:
                self._sender.pause(reader.pause())

    def history(
        self, job_id: str, *, after: str | None = None, limit: int | None = None
    ) -> JobEventPage:
        """A page of what has happened to a job, oldest first.

        ``GET /jobs/{id}/events`` as JSON
        """
        call = Call(
            "GET",
            route("jobs", job_id, "events"),
            params=given(after=after, limit=limit),
            headers={"accept": "application/json"},
        )
        return self._sender.ask(call, JobEventPage)

    def webhooks(self, job_id: str) -> WebhookTries:
        """Who was told of a job's end by webhook, when, and with what outcome.

        ``GET /jobs/{id}/webhooks``
        """
        return self._sender.ask(Call("GET", route("jobs", job_id, "webhooks")), WebhookTries)

    def result(self, job_id: str) -> CalibrationResult:
        """The result of a calibration that has succeeded.

        ``GET /jobs/{id}/result``
        """
        return self._sender.ask(Call("GET", route("jobs", job_id, "result")), CalibrationResult)

    def artifacts(self, job_id: str) -> ArtifactPage:
        """The files of a result with their digests.

        ``GET /jobs/{id}/artifacts``
        """
        return self._sender.ask(Call("GET", route("jobs", job_id, "artifacts")), ArtifactPage)

    def report(self, job_id: str) -> str:
        """What a calibration or an evaluation found, as a page of its own.

        ``GET /jobs/{id}/report``
        """
        call = Call("GET", route("jobs", job_id, "report"), wait_s=DRAWING_S)
        return (self._sender.do(call)).content.decode()

    def rank_map_png(self, job_id: str) -> bytes:
        """The rank map of a calibration as a picture, for where vectors are not shown.

        ``GET /jobs/{id}/rank_map.png``
        """
        call = Call("GET", route("jobs", job_id, "rank_map.png"), wait_s=DRAWING_S)
        return (self._sender.do(call)).content

    def rank_map_svg(self, job_id: str) -> str:
        """The rank map of a calibration as a picture that names model, data and day.

        The file ``rank_map.svg`` of a result has no day: it is kept by its content, and the same
        plan has the same content on every day.

        ``GET /jobs/{id}/rank_map.svg``
        """
        call = Call("GET", route("jobs", job_id, "rank_map.svg"), wait_s=DRAWING_S)
        return (self._sender.do(call)).content.decode()

    def download(
        self,
        job_id: str,
        folder: str | Path,
        *,
        on_file: OnFile | None = None,
        only: Callable[[Artifact], bool] | None = None,
        public_keys: Sequence[str | Path] = (),
    ) -> dict[str, Path]:
        """Fetch the files of a result into a folder, all of them or none.

        ``GET /jobs/{id}/artifacts/{name}`` for each file that is not there already;
        ``on_file`` is told of every file that was fetched; ``only`` those are that it says yes to.
        With ``public_keys``, files in PEM, one of them must have signed the result.

        Raises:
            DigestMismatch: A file is not what the service said; nothing was written.
            SignatureInvalid: The folder would not be what was signed; nothing was written.
        """
        files = (self.artifacts(job_id)).data
        download = Download([file for file in files if only is None or only(file)], folder)
        if download.missing:
            with download:
                for artifact in download.missing:
                    path = route("jobs", job_id, "artifacts", artifact.name)
                    part = download.part(artifact)
                    self._sender.do(Call("GET", path, save_to=part))
                    download.check(artifact)
                    if on_file:
                        on_file(artifact)
                if public_keys:
                    verify_files(download.all_files(), public_keys)
        elif public_keys:
            verify_folder(folder, public_keys)
        return download.paths
