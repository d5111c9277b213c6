# Made from aio/evaluations.py by `make docs`; edit that file.
"""Evaluations: where they stand, what they found, and what can be done with one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Unpack

from fimlora_client.blocking.jobs import DRAWING_S, Jobs
from fimlora_client.blocking.sender import Sender
from fimlora_client.bodies import EvaluationFields, as_json, build_evaluation
from fimlora_client.calls import JSON, Call, given, route
from fimlora_client.files import OnFile, write_text
from fimlora_client.polling import OnProgress
from fimlora_contract.estimates import EvaluationEstimate
from fimlora_contract.evaluations import Evaluation, EvaluationPage, EvaluationRequest
from fimlora_contract.jobs import Job, JobEvent
from fimlora_contract.verdicts import EvaluationResult

LONGEST_WAIT_S = 6 * 3600
REPORT = "report.html"


class Evaluations:
    """Accepted evaluations; they are jobs, and what is asked of jobs is asked of them too."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender

    def retrieve(self, evaluation_id: str, *, wait: float = 0) -> Evaluation:
        """Where an evaluation stands, and what it found once it has succeeded.

        ``GET /evaluations/{id}``
        """
        path = route("evaluations", evaluation_id)
        call = Call("GET", path, params=given(wait=wait or None), wait_s=wait)
        return self._sender.ask(call, Evaluation)

    def list(
        self,
        *,
        limit: int | None = None,
        cursor: str | None = None,
        tenant: str | None = None,
    ) -> EvaluationPage:
        """A page of evaluations, newest first; with an admin key, of one tenant.

        ``GET /evaluations``
        """
        params = given(limit=limit, cursor=cursor, tenant=tenant)
        call = Call("GET", "/evaluations", params=params)
        return self._sender.ask(call, EvaluationPage)

    def report(self, evaluation_id: str) -> str:
        """What an evaluation found, as a page of its own.

        ``GET /evaluations/{id}/report``
        """
        call = Call("GET", route("evaluations", evaluation_id, "report"), wait_s=DRAWING_S)
        return (self._sender.do(call)).content.decode()

    def estimate(
        self, request: EvaluationRequest | None = None, **fields: Unpack[EvaluationFields]
    ) -> EvaluationEstimate:
        """How many runs an evaluation would train, and what it would need; nothing is queued.

        ``POST /evaluations`` with ``validate_only``
        """
        asked = build_evaluation(request, **fields).model_copy(update={"validate_only": True})
        call = Call("POST", "/evaluations", headers=JSON, content=as_json(asked))
        return self._sender.ask(call, EvaluationEstimate)


class EvaluationHandle:
    """An evaluation and what can be done with it.

    Attributes:
        job: The evaluation as it was when last heard of.
    """

    def __init__(self, jobs: Jobs, job: Job) -> None:
        self._jobs = jobs
        self.job = job

    @property
    def id(self) -> str:
        """Its id, which is that of a job."""
        return self.job.id

    @property
    def cached(self) -> bool:
        """Whether the request had been answered before."""
        return self.job.cached

    def refresh(self) -> Job:
        """Ask where it stands now."""
        return self._keep(self._jobs.retrieve(self.id))

    def wait(
        self,
        *,
        timeout: float = LONGEST_WAIT_S,
        poll_every: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> EvaluationResult:
        """Wait for what it finds; see `Jobs.wait` for what it raises."""
        if self.job.result is None:
            self._keep(
                self._jobs.wait(
                    self.id, timeout=timeout, poll_every=poll_every, on_progress=on_progress
                )
            )
        assert isinstance(self.job.result, EvaluationResult)
        return self.job.result

    def cancel(self) -> Job:
        """Cancel it; a retry goes on from the runs that are finished."""
        return self._keep(self._jobs.cancel(self.id))

    def retry(self) -> "EvaluationHandle":
        """Queue it once more; runs that are finished are not repeated."""
        return EvaluationHandle(self._jobs, self._jobs.retry(self.id))

    def delete(self) -> None:
        """Forget it."""
        self._jobs.delete(self.id)

    def events(self, *, after: str | None = None) -> Iterator[JobEvent]:
        """Every event as it happens, until it has ended."""
        return self._jobs.events(self.id, after=after)

    def download(self, folder: str | Path, *, on_file: OnFile | None = None) -> dict[str, Path]:
        """Fetch raw results and findings into a folder, and its report."""
        files = self._jobs.download(self.id, folder, on_file=on_file)
        if REPORT not in files:  # a page is drawn when it is asked for
            files[REPORT] = Path(folder) / REPORT
            write_text(files[REPORT], self.report())
        return files

    def report(self) -> str:
        """What it found, as a page of its own."""
        return self._jobs.report(self.id)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """What a notebook shows: what was found, or where it stood when last heard of."""
        return self.job._repr_mimebundle_()

    def _keep(self, job: Job) -> Job:
        # Only the answer to POST /evaluations says that a result was cached; remember it.
        self.job = job.model_copy(update={"cached": True}) if self.job.cached else job
        return self.job
