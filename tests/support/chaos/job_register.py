"""The models that histories are held against: a job, and an idempotency key.

A job is a register that is changed by compare-and-set only: a change names the attempt that it
speaks for, as a fencing token, and the states it may start from. Final states stay.
"""

from typing import NamedTuple

from support.chaos.histories import Operation

FINAL = frozenset({"succeeded", "failed", "canceled"})
# What a worker or the reaper may make of a job, and what it must have been before.
MAY_FOLLOW = {
    "running": {"queued"},
    "queued": {"queued", "running"},  # the next attempt
    "succeeded": {"running"},
    "failed": {"queued", "running"},
    "canceled": {"canceling"},
}
REFUSED = {
    "job_not_finished": {"queued", "running", "canceling"},
    "job_already_finished": FINAL,
    "job_failed": {"failed"},
    "canceled": {"canceled"},
}


class JobState(NamedTuple):
    """A job on record."""

    status: str = "queued"
    attempt: int = 1
    digest: str = ""  # of its result, once somebody has seen it


NO_JOB = JobState("", 0)


class JobRegister:
    """One job: submitted, changed by workers, canceled and looked at by clients."""

    initial = NO_JOB

    def only_reads(self, operation: Operation) -> bool:
        """Whether it looks and no more."""
        return operation.kind in {"read", "refused", "retry"}

    def step(self, state: JobState, operation: Operation) -> JobState | None:
        """The job after an operation; ``None`` where the answer cannot be true."""
        return getattr(self, f"_{operation.kind}")(state, *operation.answer)

    def _submit(self, state: JobState, *shown: object) -> JobState | None:
        after = JobState() if state == NO_JOB else state
        return after if shown == ("lost",) or shown == after[:2] else None

    def _read(self, state: JobState, *shown: object) -> JobState | None:
        return state if shown == state[:2] else None

    def _commit(self, state: JobState, status: str, attempt: int) -> JobState | None:
        due = state.attempt + (status == "queued")
        fits = state.status in MAY_FOLLOW[status] and attempt == due
        return JobState(status, attempt) if fits else None

    def _cancel(self, state: JobState, *_: object) -> JobState | None:
        after = {"queued": "canceled", "running": "canceling", "canceling": "canceling"}
        status = after.get(state.status)
        return state._replace(status=status) if status else None

    def _result(self, state: JobState, digest: str) -> JobState | None:
        fits = state.status == "succeeded" and state.digest in {"", digest}
        return state._replace(digest=digest) if fits else None

    def _refused(self, state: JobState, code: str) -> JobState | None:
        return state if state.status in REFUSED[code] else None

    def _retry(self, state: JobState, *_: object) -> JobState | None:
        return state if state.status in {"failed", "canceled"} else None


class KeyRegister:
    """One idempotency key: whoever binds it first says which job it names, for good."""

    initial = ""

    def only_reads(self, operation: Operation) -> bool:
        """Whether it looks and no more."""
        return False

    def step(self, state: str, operation: Operation) -> str | None:
        """The job that the key names after a request under it."""
        if operation.is_lost:
            return state  # it named nothing that anybody has seen
        (job_id,) = operation.answer
        return job_id if state in {"", job_id} else None
