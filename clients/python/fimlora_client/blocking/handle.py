# Made from aio/handle.py by `make docs`; edit that file.
"""A job and what can be done with it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Unpack

from fimlora_client.blocking.jobs import Jobs
from fimlora_client.bodies import PlanFields
from fimlora_client.files import OnFile
from fimlora_client.polling import OnProgress
from fimlora_client.results import Result
from fimlora_contract.jobs import Job, JobEvent
from fimlora_contract.plans import Plan


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
        return self._keep(self._jobs.retrieve(self.id))

    def wait(
        self,
        *,
        timeout: float = 3600,
        poll_every: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Result:
        """Wait for the result; see `Jobs.wait` for what it raises."""
        if self.job.result is None:
            self._keep(
                self._jobs.wait(
                    self.id, timeout=timeout, poll_every=poll_every, on_progress=on_progress
                )
            )
        return Result.of(self.job)

    def result(self) -> Result:
        """The result of the job if it has one by now."""
        job = self.refresh()
        result = job.result or self._jobs.result(self.id)
        return Result.of(job.model_copy(update={"result": result}))

    def allocate(self, **fields: Unpack[PlanFields]) -> Plan:
        """Another plan from what the job has measured, at once."""
        return self._jobs.allocate(self.id, **fields)

    def cancel(self) -> Job:
        """Cancel the job."""
        return self._keep(self._jobs.cancel(self.id))

    def retry(self) -> "JobHandle":
        """Queue the request once more; answers the new job."""
        return JobHandle(self._jobs, self._jobs.retry(self.id))

    def delete(self) -> None:
        """Forget the job."""
        self._jobs.delete(self.id)

    def events(self, *, after: str | None = None) -> Iterator[JobEvent]:
        """Every event of the job as it happens, until it has ended."""
        return self._jobs.events(self.id, after=after)

    def report(self) -> str:
        """What was found, as a page of its own."""
        return self._jobs.report(self.id)

    def download(self, folder: str | Path, *, on_file: OnFile | None = None) -> dict[str, Path]:
        """Fetch the files of the result into a folder."""
        return self._jobs.download(self.id, folder, on_file=on_file)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """What a notebook shows: what was found, or where it stood when last heard of."""
        return self.job._repr_mimebundle_()

    def _keep(self, job: Job) -> Job:
        # Only the answer to POST /calibrate says that a result was cached; remember it.
        self.job = job.model_copy(update={"cached": True}) if self.job.cached else job
        return self.job
