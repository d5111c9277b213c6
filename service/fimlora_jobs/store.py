"""The truth about jobs: compare-and-set on records in Redis.

Every change names the attempt it speaks for and the states it may start from; a script
checks both and writes in one step. An attempt number is a fencing token: a worker that was
taken for dead cannot overwrite what its successor did. Final states are sticky. Times are
the Redis server's, so machines need no common clock.
"""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple

from redis.exceptions import RedisError
from redis.lock import Lock

from fimlora_contract.jobs import (
    FINAL_STATUSES,
    AttemptEnd,
    EarlierAttempt,
    JobError,
    JobKind,
    JobStatus,
    Progress,
)
from fimlora_jobs.answers import text_of
from fimlora_jobs.attempts import LEASE_S, MAX_ATTEMPTS, MAX_STORAGE_REFUSALS
from fimlora_jobs.deduplication import FIGURES, SHARED_TTL_S, Deduplication
from fimlora_jobs.durability import owe
from fimlora_jobs.events import event_text
from fimlora_jobs.open_limits import NO_LIMITS, OpenLimits, TooManyOpen
from fimlora_jobs.reader import Change, JobMissing, read_record
from fimlora_jobs.record import (
    ROWS,
    SHOWN_FIELDS,
    JobRecord,
    new_job_id,
    request_fields,
    trace_field,
)
from fimlora_jobs.result_owners import ResultOwners
from fimlora_jobs.scripts import run_script

COUNTERS = "tallies"  # the key under which they have been counted from the beginning
ATTEMPT_END = "attempt:"  # before the reason, in that key
MAX_EVENTS = 5_000
ATTEMPTS_SHOWN = 20  # one that makes room for others may have hundreds
# What is kept beside a job's record, under keys of these names, and goes with it.
BESIDE = ("events", "plans", "runs", "claims", "failed_hands", "run_steps", "webhook_tries")
# Upper bounds of the classes that durations are counted in.
DURATION_BOUNDS_S = (1, 3, 10, 30, 60, 180, 600, 1800, 3600, 10_800)
DURATION_CLASSES = " ".join(map(str, DURATION_BOUNDS_S))
# What the script that makes a job answers where a limit is reached.
FULL, OWNERS_FULL = -1, -2
Q, R, C = JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.CANCELING


class Look(NamedTuple):
    """When somebody looks after all jobs, by the server's clock.

    Attributes:
        now_ms: Now.
        again_ms: When looks began again after a gap; 0 if there was none.
    """

    now_ms: int
    again_ms: int


class RequestTaken(RuntimeError):
    """Another job was put on record for equal requests in the meantime."""


class JobOpen(RuntimeError):
    """What is asked for is possible only once the job has ended."""


class StaleAttempt(RuntimeError):
    """The change spoke for an attempt or a state that is no longer current.

    Attributes:
        status: What the job's status is instead.
    """

    def __init__(self, message: str, *, status: JobStatus) -> None:
        super().__init__(message)
        self.status = status


class JobStore(Deduplication):
    """Job records under one key prefix of a Redis server, and every change of them."""

    # Creating

    def new_id(self) -> str:
        """A fresh job id."""
        return new_job_id(self.now_ms())

    def create(
        self,
        job_id: str,
        *,
        kind: JobKind = JobKind.CALIBRATION,
        request: Mapping[str, Any],
        resolved: Mapping[str, Any],
        digest: str,
        statistics_digest: str = "",
        statistics_from: str = "",
        tenant: str = "",
        owner: str = "",
        in_place_of: str | None = None,
        counted_as: str = "",
        came_with: Mapping[str, str] | None = None,
        limits: OpenLimits = NO_LIMITS,
    ) -> JobRecord:
        """Put a queued job on record; creating the same id again changes nothing.

        Args:
            job_id: Its id.
            kind: What it is for.
            request: The request as accepted, short forms expanded.
            resolved: What the references resolved to.
            digest: Equal for requests that must give equal results.
            statistics_digest: Equal for requests that must measure equal statistics.
            statistics_from: A job whose statistics are used instead of measuring.
            tenant: Who may find its result by its inputs; empty for everybody.
            owner: The tenant that it belongs to; empty for the operator.
            in_place_of: What `shared` said; equal requests find this job from then on. With
                ``None`` they do not.
            counted_as: The figure that counts it; empty for none.
            came_with: What leads from its attempts back to the request: fields of its own.
            limits: How many jobs may be open.

        Raises:
            RequestTaken: `shared` says something else by now.
            TooManyOpen: A limit is reached.
        """
        keys = [
            self._job(job_id), self._open(), self.key("jobs"), self._events(job_id),
            self.key("deadlines"), self.key(FIGURES), self._names(job_id),
        ]  # fmt: skip
        fields = request_fields(request, resolved) | {
            "kind": kind,
            "request_digest": digest,
            "statistics_digest": statistics_digest,
            "statistics_from": statistics_from,
            "tenant": tenant,
            **(came_with or {}),
            "owner": owner,
        }
        if in_place_of is not None:
            keys.append(self.key("shared", digest))
        deadline_s = request.get("deadline_s")
        until_ms = str(round(deadline_s * 1000)) if deadline_s else ""
        given: list[str | int] = [
            job_id, event_text("status", job_id, Q, 1), in_place_of or "", SHARED_TTL_S,
            until_ms, counted_as, " ".join(SHOWN_FIELDS), limits.total,
            limits.per_owner, *_flat(fields),
        ]  # fmt: skip
        values = run_script(self._redis, "create", keys=keys, args=given)
        if values is None:
            raise RequestTaken(f"another job was put on record for {digest}")
        if values == FULL:
            raise TooManyOpen(limit=limits.total, is_owners=False)
        if values == OWNERS_FULL:
            raise TooManyOpen(limit=limits.per_owner, is_owners=True)
        owe()
        record = read_record(SHOWN_FIELDS, values)
        assert record is not None
        return record

    def join(self, job_id: str) -> JobRecord | None:
        """Let one more request share an open job; ``None`` when it is too late for that."""
        joined = run_script(self._redis, "join", keys=[self._job(job_id)])
        if not joined:
            return None
        owe()
        return self.shown(job_id)

    # A worker speaks for its attempt

    def start(
        self, job_id: str, attempt: int, *, worker: str, traceparent: str = ""
    ) -> JobRecord:
        """Take a queued attempt and hold its lease.

        Args:
            job_id: The job.
            attempt: Number of the attempt.
            worker: Who takes it.
            traceparent: What later attempts find its trace by; empty for none.

        Raises:
            StaleAttempt: Another attempt is current, or this one is not queued any more.
        """
        fields = {"status": R, "worker": worker, "progress": "", "error": ""}
        if traceparent:
            fields[trace_field(attempt)] = traceparent
        event = event_text("status", job_id, R, attempt)
        self._change(job_id, attempt, {Q}, fields, event=event, lease_s=LEASE_S)
        return self.get(job_id)

    def renew(self, job_id: str, attempt: int) -> JobStatus:
        """Hold the lease for another term; the answer shows a cancel request.

        An attempt that a worker has popped and not yet started is still queued.
        """
        return self._change(job_id, attempt, {Q, R, C}, {}, lease_s=LEASE_S).status

    def report(self, job_id: str, attempt: int, progress: Progress) -> JobStatus:
        """Put progress on record; the answer shows a cancel request."""
        event = event_text("progress", job_id, R, attempt, progress=progress)
        fields = {"progress": progress.model_dump_json()}
        return self._change(
            job_id, attempt, {R, C}, fields, event=event, lease_s=LEASE_S
        ).status

    def measure_anew(self, job_id: str, attempt: int) -> None:
        """Take back that a running job uses another job's statistics: they are gone."""
        self._change(job_id, attempt, {R, C}, {"statistics_from": ""}, lease_s=LEASE_S)

    def note_memory(self, job_id: str, attempt: int, asked: str) -> JobStatus:
        """Put on record what an attempt is about to take; the answer shows a cancel request."""
        fields = {"memory_asked": asked}
        return self._change(job_id, attempt, {R, C}, fields, lease_s=LEASE_S).status

    def forgive(self, job_id: str, attempt: int) -> None:
        """Count no attempt that was lost so far: this one has got somewhere, for good."""
        fields = {"failures": "0", "killed_asking": "", "storage_refusals": "0"}
        self._change(job_id, attempt, {R, C}, fields, lease_s=LEASE_S)

    def succeed(
        self,
        job_id: str,
        attempt: int,
        result: Mapping[str, Any],
        *,
        finished_ms: int | None = None,
    ) -> None:
        """End a running job with its result.

        Args:
            job_id: The job.
            attempt: Number of the attempt.
            result: As the record has it.
            finished_ms: When that was, by the server's clock, if it has been said elsewhere.

        Raises:
            StaleAttempt: The attempt is not current, or a cancel request came first.
        """
        fields = {
            "status": JobStatus.SUCCEEDED,
            "result": json.dumps(result, allow_nan=False),
            **dict.fromkeys(ROWS.values(), ""),  # nobody runs it again
        }
        if finished_ms is not None:
            fields["finished_at"] = str(finished_ms)
        self._note_owner(job_id, attempt, result)
        event = event_text("status", job_id, JobStatus.SUCCEEDED, attempt)
        self._change(job_id, attempt, {R}, fields, event=event, lease_s=0)
        self._count_end("succeeded")

    def fail(self, job_id: str, attempt: int, error: JobError) -> None:
        """End a job with an error; a job being canceled ends as canceled instead."""
        fields = {"status": JobStatus.FAILED, "error": error.model_dump_json()}
        event = event_text("status", job_id, JobStatus.FAILED, attempt, error=error)
        try:
            self._change(job_id, attempt, {Q, R}, fields, event=event, lease_s=0)
            self._count_end(error.code)
        except StaleAttempt as stale:
            if stale.status is not C:
                raise
            self.confirm_cancel(job_id, attempt)

    def confirm_cancel(self, job_id: str, attempt: int) -> None:
        """End a job whose cancel request has been obeyed."""
        fields = {"status": JobStatus.CANCELED}
        event = event_text("status", job_id, JobStatus.CANCELED, attempt)
        self._change(job_id, attempt, {C}, fields, event=event, lease_s=0)
        self._count_end("canceled")

    # Anyone

    def withdraw(self, job_id: str) -> JobStatus:
        """Take back one request: a job that no other shares is canceled.

        Raises:
            StaleAttempt: The job has already ended.
        """
        if run_script(self._redis, "leave", keys=[self._job(job_id)]):
            owe()
            return self.status_of(job_id)
        return self.request_cancel(job_id)

    def request_cancel(self, job_id: str) -> JobStatus:
        """Cancel a queued job at once, ask a running one to stop, whoever shares it.

        Raises:
            StaleAttempt: The job has already ended.
        """
        while True:
            record = self.get(job_id)
            if record.status is C:
                return C
            target = JobStatus.CANCELED if record.status is Q else C
            event = event_text("status", job_id, target, record.attempt)
            try:
                return self._change(
                    job_id,
                    record.attempt,
                    {record.status} & {Q, R},
                    {"status": target},
                    event=event,
                ).status
            except StaleAttempt as stale:
                if stale.status in FINAL_STATUSES:
                    raise

    def delete(self, job_id: str) -> None:
        """Forget a job that has ended; its files stay for others that have the same.

        Raises:
            JobMissing: There is no such job.
            JobOpen: It has not ended.
        """
        beside = [self.key(name, job_id) for name in BESIDE]
        keys = [
            self._job(job_id), self._open(), self.key("jobs"), self.key("deadlines"),
            self.key("missing"), self.key("outbox"), self.key("outbox_tries"),
            self.key("webhooks", job_id), self._names(job_id), *beside,
        ]  # fmt: skip
        done = run_script(self._redis, "delete", keys=keys, args=[job_id])
        if done == -1:
            raise JobMissing(f"no job {job_id!r}")
        if not done:
            raise JobOpen(f"job {job_id!r} has not ended")

    def note_stopping(self, job_id: str, attempt: int) -> None:
        """Put on record that an attempt's worker is to stop: what is lost then is not counted."""
        self._change(job_id, attempt, {Q, R, C}, {"stopping_attempt": str(attempt)})

    def requeue(
        self,
        job_id: str,
        attempt: int,
        *,
        counted: bool = True,
        reason: AttemptEnd | None = None,
        error: JobError | None = None,
        is_refused: bool = False,
    ) -> Change:
        """Give up an attempt: the next one is queued, or the job fails after the last.

        Args:
            job_id: The job.
            attempt: The attempt to give up.
            counted: Whether it counts against the limit; an orderly shutdown does not.
            reason: Why it ended; if left out, what the error says, or that its worker was lost.
            error: What the job fails with when no attempt is left; a want of memory is noted
                for the next one.
            is_refused: Whether storage that works refused the job; too often in a row ends it.

        Raises:
            StaleAttempt: The attempt is no longer current.
        """
        record = self.get(job_id)
        ended = _ended(
            record, counted=counted, reason=reason, error=error, now_ms=self.now_ms()
        )
        failures = record.failures + int(ended.counted)
        refusals = _refusals(record, ended, is_refused=is_refused)
        if record.status is C:
            self.confirm_cancel(job_id, attempt)
            return Change(JobStatus.CANCELED, attempt)
        if failures >= MAX_ATTEMPTS or (is_refused and refusals >= MAX_STORAGE_REFUSALS):
            self.fail(job_id, attempt, error or _lost(failures))
            return Change(JobStatus.FAILED, attempt)
        fields = {
            "status": Q, "attempt": str(attempt + 1), "failures": str(failures), "worker": "",
            "earlier_attempts": _history([*record.earlier_attempts, ended]), "memory_asked": "",
            "storage_refusals": str(refusals),
        }  # fmt: skip
        if error and error.code == "out_of_memory_host":
            kills = [*record.memory_kills, record.fields.get("memory_asked", "")]
            fields["killed_asking"] = json.dumps(kills)
        event = event_text("status", job_id, Q, attempt + 1, reason=ended.reason)
        change = self._change(job_id, attempt, {Q, R}, fields, event=event, lease_s=0)
        self._count_end(ended.reason)
        return change

    def note_missing(self, job_id: str, attempt: int, *, missing: bool) -> None:
        """Put on record whether a queued attempt was found in no list; see the reaper."""
        # Listed before the record says so: what the record says is then always found.
        if missing:
            self._redis.sadd(self.key("missing"), job_id)
        fields = {"missing_attempt": str(attempt) if missing else ""}
        self._change(job_id, attempt, {Q}, fields)

    def unlist_missing(self, ids: Iterable[str]) -> None:
        """Take jobs off the list of those that were noted as missing."""
        if ids := list(ids):
            self._redis.srem(self.key("missing"), *ids)

    def unlist_overdue(self, ids: Iterable[str]) -> None:
        """Look no more after these jobs' deadlines."""
        if ids := list(ids):
            self._redis.zrem(self.key("deadlines"), *ids)

    # Among processes

    def look(self, *, gap_ms: int) -> Look:
        """Note that somebody looks after all jobs; tells of the last gap between two looks."""
        found = run_script(self._redis, "reaper_look", keys=[self.key("looks")], args=[gap_ms])
        now, again = map(int, found)
        return Look(now, again)

    def lock(self, name: str, *, ttl_s: float) -> Lock:
        """A lock among all processes, which nobody waits for and which runs out by itself."""
        key = self.key("lock", name)
        made: Lock = self._redis.lock(key, timeout=ttl_s, blocking=False, thread_local=False)
        return made

    # Inside

    def _count_end(self, reason: str) -> None:
        """Count why an attempt ended; what has been put on record stands without it."""
        with suppress(RedisError):
            self._redis.hincrby(self.key(COUNTERS), f"{ATTEMPT_END}{reason}", 1)

    def _note_owner(self, job_id: str, attempt: int, result: Mapping[str, Any]) -> None:
        """Let a job's tenant ask for its result, before anybody sees that the job has succeeded."""
        current, status, owner = self._redis.hmget(
            self._job(job_id), ("attempt", "status", "owner")
        )
        is_current = (text_of(current or ""), text_of(status or "")) == (str(attempt), R)
        if is_current and result.get("digest"):
            ResultOwners(self).add(result["digest"], text_of(owner or ""))

    def _change(
        self,
        job_id: str,
        attempt: int,
        allowed: Iterable[JobStatus],
        fields: Mapping[str, str],
        *,
        event: str = "",
        lease_s: float | None = None,
    ) -> Change:
        keys = [
            self._job(job_id), self._open(), self._events(job_id), self.key(COUNTERS),
            self.key("webhooks", job_id), self.key("outbox"),
        ]  # fmt: skip
        lease = "" if lease_s is None else str(int(lease_s * 1000))
        states = f"|{'|'.join(allowed)}|"
        given: list[str | int] = [
            attempt, states, event, lease, MAX_EVENTS, DURATION_CLASSES, *_flat(fields),
        ]  # fmt: skip
        done, status, current = run_script(self._redis, "change", keys=keys, args=given)
        if done == -1:
            raise JobMissing(f"no job {job_id!r}")
        found = Change(JobStatus(text_of(status)), int(current))
        if not done:
            raise StaleAttempt(
                f"job {job_id} is {found.status} in attempt {found.attempt}, "
                f"not in attempt {attempt} and one of {sorted(allowed)}",
                status=found.status,
            )
        owe()
        return found


def _ended(
    record: JobRecord,
    *,
    counted: bool,
    reason: AttemptEnd | None,
    error: JobError | None,
    now_ms: int,
) -> EarlierAttempt:
    """What is to be said of an attempt that is given up."""
    if reason is None:
        known = error is not None and error.code in set(AttemptEnd)
        lost = AttemptEnd.WORKER_LOST if counted else AttemptEnd.HANDED_OVER
        reason = AttemptEnd(error.code) if error and known else lost
    if reason is AttemptEnd.WORKER_LOST and record.is_stopping:
        reason, counted = AttemptEnd.HANDED_OVER, False
    return EarlierAttempt(
        attempt=record.attempt,
        reason=reason,
        counted=counted,
        detail=error.detail if error else None,
        ended_at=datetime.fromtimestamp(now_ms / 1000, tz=UTC),
    )


def _refusals(record: JobRecord, ended: EarlierAttempt, *, is_refused: bool) -> int:
    """How often in a row storage has refused a job; an end that has nothing to do with it is none."""
    if is_refused:
        return record.storage_refusals + 1
    is_away = ended.reason is AttemptEnd.STORAGE_UNAVAILABLE
    return 0 if is_away else record.storage_refusals


def _history(attempts: list[EarlierAttempt]) -> str:
    return json.dumps([each.model_dump(mode="json") for each in attempts[-ATTEMPTS_SHOWN:]])


def _lost(failures: int) -> JobError:
    detail = f"the worker was lost in each of {failures} attempts"
    return JobError(code="worker_lost", detail=detail, retryable=True)


def _flat(fields: Mapping[str, str]) -> list[str]:
    return [part for pair in fields.items() for part in pair]
