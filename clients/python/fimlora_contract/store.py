"""The truth about jobs: compare-and-set on records in Redis.

Every change names the attempt it speaks for and the states it may start from; a script
checks both and writes in one step. An attempt number is a fencing token: a worker that was
taken for dead cannot overwrite what its successor did. Final states are sticky. Times are
the Redis server's, so machines need no common clock.
"""

import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fimlora_contract import scripts
from fimlora_contract.jobs import (
    FINAL_STATUSES,
    JobError,
    JobEvent,
    JobStatus,
    Progress,
)
from fimlora_contract.records import (
    SHOWN_FIELDS,
    STATE_FIELDS,
    JobRecord,
    new_job_id,
    split_rows,
)
from fimlora_contract.tasks import LEASE_S, MAX_ATTEMPTS

Q, R, C = JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.CANCELING
IDEMPOTENCY_TTL_S = 24 * 3600
BATCH = 500


class JobMissing(LookupError):
    """There is no job with that id."""


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


class Change(NamedTuple):
    """Where a job stands after a change."""

    status: JobStatus
    attempt: int


class JobStore:
    """Job records under one key prefix of a Redis server.

    Args:
        redis: A connected redis-py client; it may decode answers or not.
        prefix: Before every key, so that several services can share a server.
    """

    def __init__(self, redis: Any, *, prefix: str = "fimlora:") -> None:
        self._redis = redis
        self._prefix = prefix

    @property
    def redis(self) -> Any:
        """The client, for what is kept beside the jobs."""
        return self._redis

    def key(self, *parts: str) -> str:
        """A key of this service."""
        return self._prefix + ":".join(parts)

    def now_ms(self) -> int:
        """The server's clock in milliseconds."""
        seconds, microseconds = self._redis.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    # Creating and reading

    def new_id(self) -> str:
        """A fresh job id."""
        return new_job_id(self.now_ms())

    def create(
        self,
        job_id: str,
        *,
        request: Mapping[str, Any],
        resolved: Mapping[str, Any],
        digest: str,
        statistics_digest: str = "",
        statistics_from: str = "",
        tenant: str = "",
        in_place_of: str | None = None,
    ) -> JobRecord:
        """Put a queued job on record; creating the same id again changes nothing.

        Args:
            job_id: Its id.
            request: The request as accepted, short forms expanded.
            resolved: What the references resolved to.
            digest: Equal for requests that must give equal results.
            statistics_digest: Equal for requests that must measure equal statistics.
            statistics_from: A job whose statistics are used instead of measuring.
            tenant: Who may find its result by its inputs; empty for everybody.
            in_place_of: What `shared` said; equal requests find this job from then on. With
                ``None`` they do not.

        Raises:
            RequestTaken: `shared` says something else by now.
        """
        event = _event("status", job_id, Q, 1)
        keys = [
            self._job(job_id), self._open(), self.key("jobs"), self._events(job_id),
            self.key("deadlines"),
        ]  # fmt: skip
        shown, rows = split_rows(request)
        fields = {
            "request": json.dumps(shown),
            "rows": json.dumps(rows) if rows is not None else "",
            "resolved": json.dumps(resolved),
            "request_digest": digest,
            "statistics_digest": statistics_digest,
            "statistics_from": statistics_from,
            "tenant": tenant,
        }
        pipeline = self._redis.pipeline(transaction=False)
        if in_place_of is not None:
            keys.append(self.key("shared", digest))
        deadline_s = request.get("deadline_s")
        until_ms = str(round(deadline_s * 1000)) if deadline_s else ""
        given = [job_id, event, in_place_of or "", until_ms, *_flat(fields)]
        pipeline.eval(scripts.CREATE, len(keys), *keys, *given)
        pipeline.hmget(self._job(job_id), SHOWN_FIELDS)
        created, values = pipeline.execute()
        if created == -1:
            raise RequestTaken(f"another job was put on record for {digest}")
        record = _record(SHOWN_FIELDS, values)
        if record is None:
            raise JobMissing(f"job {job_id!r} was deleted while it was made")
        return record

    def shared(self, digest: str) -> str:
        """Id of the newest job that equal requests may share, empty when there was none."""
        return _text(self._redis.get(self.key("shared", digest)) or "")

    def join(self, job_id: str) -> JobRecord | None:
        """Let one more request share an open job; ``None`` when it is too late for that."""
        joined = self._redis.eval(scripts.JOIN, 1, self._job(job_id))
        return self.shown(job_id) if joined else None

    def get(self, job_id: str) -> JobRecord:
        """Read a job.

        Raises:
            JobMissing: There is no such job.
        """
        stored = self._redis.hgetall(self._job(job_id))
        if not stored:
            raise JobMissing(f"no job {job_id!r}")
        return JobRecord.from_hash(stored)

    def shown(self, job_id: str) -> JobRecord:
        """Read of a job what clients see: all but inline rows.

        Raises:
            JobMissing: There is no such job.
        """
        [record] = self._read([job_id], SHOWN_FIELDS)
        if record is None:
            raise JobMissing(f"no job {job_id!r}")
        return record

    def shown_many(self, job_ids: Iterable[str]) -> Iterator[JobRecord]:
        """Read of some jobs what clients see; those that are gone are passed over."""
        ids = sorted(job_ids)
        for start in range(0, len(ids), BATCH):
            yield from filter(None, self._read(ids[start : start + BATCH], SHOWN_FIELDS))

    def version_of(self, job_id: str) -> int:
        """Read only the version: what tells whether an earlier answer still holds.

        Raises:
            JobMissing: There is no such job.
        """
        id_, version = self._redis.hmget(self._job(job_id), ("id", "version"))
        if id_ is None:
            raise JobMissing(f"no job {job_id!r}")
        return int(version or 0)

    def status_of(self, job_id: str) -> JobStatus:
        """Read only the status: what a long poll repeats."""
        status = self._redis.hget(self._job(job_id), "status")
        if status is None:
            raise JobMissing(f"no job {job_id!r}")
        return JobStatus(_text(status))

    def page(self, *, limit: int, before: str | None = None) -> list[JobRecord]:
        """Jobs from newest to oldest, starting after the id ``before``."""
        start = f"({before}" if before else "+"
        ids = self._redis.zrevrangebylex(self.key("jobs"), start, "-", start=0, num=limit)
        records = self._read([_text(id_) for id_ in ids], SHOWN_FIELDS)
        return [record for record in records if record]

    def ids_before(self, created_ms: int, *, limit: int) -> list[str]:
        """Ids of jobs created before a time, the oldest first."""
        end = f"(job_{max(created_ms, 0):011x}"
        ids = self._redis.zrangebylex(self.key("jobs"), "-", end, start=0, num=limit)
        return [_text(id_) for id_ in ids]

    def open_jobs(self) -> dict[str, Change]:
        """All jobs that have not ended, each with its status and attempt."""
        stored = self._redis.hgetall(self._open())
        parts = {_text(id_): _text(value).split(" ") for id_, value in stored.items()}
        return {id_: Change(JobStatus(status), int(n)) for id_, (status, n) in parts.items()}

    def open_requests(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Id and request, without inline rows, of every job that has not ended."""
        ids = sorted(self.open_jobs())
        for start in range(0, len(ids), BATCH):
            for record in self._read(ids[start : start + BATCH], (*STATE_FIELDS, "request")):
                if record:
                    yield record.id, record.shown_request

    def overdue_ids(self) -> list[str]:
        """Ids of jobs whose deadline has passed and that nobody has looked at since."""
        passed = self._redis.zrangebyscore(self.key("deadlines"), "-inf", self.now_ms())
        return [_text(id_) for id_ in passed]

    def unlist_overdue(self, ids: Iterable[str]) -> None:
        """Look no more after these jobs' deadlines."""
        if given := list(ids):
            self._redis.zrem(self.key("deadlines"), *given)

    def missing_ids(self) -> set[str]:
        """Jobs of which an attempt was noted as missing."""
        return {_text(id_) for id_ in self._redis.smembers(self.key("missing"))}

    def states(self, ids: Iterable[str]) -> Iterator[JobRecord]:
        """What is needed to look after jobs, of those that are still on record."""
        wanted = sorted(ids)
        for start in range(0, len(wanted), BATCH):
            yield from filter(None, self._read(wanted[start : start + BATCH], STATE_FIELDS))

    def events(self, job_id: str, *, after: str = "0", limit: int = 500) -> list[JobEvent]:
        """The job's history behind the event ``after``, oldest first."""
        entries = self._redis.xrange(
            self._events(job_id), min=f"({after}", max="+", count=limit
        )
        return [
            JobEvent(id=_text(id_), **json.loads(_field(fields, "event")))
            for id_, fields in entries
        ]

    # A worker speaks for its attempt

    def start(self, job_id: str, attempt: int, *, worker: str) -> JobRecord:
        """Take a queued attempt and hold its lease.

        Raises:
            StaleAttempt: Another attempt is current, or this one is not queued any more.
        """
        fields = {"status": R, "worker": worker, "progress": "", "error": ""}
        event = _event("status", job_id, R, attempt)
        self._change(job_id, attempt, {Q}, fields, event=event, lease_s=LEASE_S)
        return self.get(job_id)

    def renew(self, job_id: str, attempt: int) -> JobStatus:
        """Hold the lease for another term; the answer shows a cancel request.

        An attempt that a worker has popped and not yet started is still queued.
        """
        return self._change(job_id, attempt, {Q, R, C}, {}, lease_s=LEASE_S).status

    def report(self, job_id: str, attempt: int, progress: Progress) -> JobStatus:
        """Put progress on record; the answer shows a cancel request."""
        event = _event("progress", job_id, R, attempt, progress=progress)
        fields = {"progress": progress.model_dump_json()}
        return self._change(
            job_id, attempt, {R, C}, fields, event=event, lease_s=LEASE_S
        ).status

    def measure_anew(self, job_id: str, attempt: int) -> None:
        """Take back that a running job uses another job's statistics: they are gone."""
        self._change(job_id, attempt, {R, C}, {"statistics_from": ""}, lease_s=LEASE_S)

    def succeed(self, job_id: str, attempt: int, result: Mapping[str, Any]) -> None:
        """End a running job with its result.

        Raises:
            StaleAttempt: The attempt is not current, or a cancel request came first.
        """
        fields = {
            "status": JobStatus.SUCCEEDED,
            "result": json.dumps(result, allow_nan=False),
            "rows": "",  # nobody runs it again
        }
        event = _event("status", job_id, JobStatus.SUCCEEDED, attempt)
        self._change(job_id, attempt, {R}, fields, event=event, lease_s=0)

    def fail(self, job_id: str, attempt: int, error: JobError) -> None:
        """End a job with an error; a job being canceled ends as canceled instead."""
        fields = {"status": JobStatus.FAILED, "error": error.model_dump_json()}
        event = _event("status", job_id, JobStatus.FAILED, attempt, error=error)
        try:
            self._change(job_id, attempt, {Q, R}, fields, event=event, lease_s=0)
        except StaleAttempt as stale:
            if stale.status is not C:
                raise
            self.confirm_cancel(job_id, attempt)

    def confirm_cancel(self, job_id: str, attempt: int) -> None:
        """End a job whose cancel request has been obeyed."""
        fields = {"status": JobStatus.CANCELED}
        event = _event("status", job_id, JobStatus.CANCELED, attempt)
        self._change(job_id, attempt, {C}, fields, event=event, lease_s=0)

    # Anyone

    def withdraw(self, job_id: str) -> JobStatus:
        """Take back one request: a job that no other shares is canceled.

        Raises:
            StaleAttempt: The job has already ended.
        """
        if self._redis.eval(scripts.LEAVE, 1, self._job(job_id)):
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
            event = _event("status", job_id, target, record.attempt)
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
        keys = [self._job(job_id), self._events(job_id), self._open(), self.key("jobs")]
        done = self._redis.eval(scripts.DELETE, len(keys), *keys, job_id)
        if done == -1:
            raise JobMissing(f"no job {job_id!r}")
        if not done:
            raise JobOpen(f"job {job_id!r} has not ended")

    def requeue(
        self, job_id: str, attempt: int, *, counted: bool = True, error: JobError | None = None
    ) -> Change:
        """Give up an attempt: the next one is queued, or the job fails after the last.

        Args:
            job_id: The job.
            attempt: The attempt to give up.
            counted: Whether it counts against the limit; an orderly shutdown does not.
            error: What the job fails with when no attempt is left; a want of memory is noted
                for the next one.

        Raises:
            StaleAttempt: The attempt is no longer current.
        """
        record = self.get(job_id)
        failures = record.failures + int(counted)
        if record.status is C:
            self.confirm_cancel(job_id, attempt)
            return Change(JobStatus.CANCELED, attempt)
        if failures >= MAX_ATTEMPTS:
            self.fail(job_id, attempt, error or _lost(failures))
            return Change(JobStatus.FAILED, attempt)
        fields = {
            "status": Q, "attempt": str(attempt + 1), "failures": str(failures), "worker": "",
        }  # fmt: skip
        if error and error.code == "out_of_memory_host":
            fields["memory_kills"] = str(record.memory_kills + 1)
        event = _event("status", job_id, Q, attempt + 1)
        return self._change(job_id, attempt, {Q, R}, fields, event=event, lease_s=0)

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

    # Results and requests that are already known

    def remember_result(self, digest: str, job_id: str) -> None:
        """Let the next equal request find this job."""
        self._redis.set(self.key("cache", digest), job_id)

    def find_result(self, digest: str) -> JobRecord | None:
        """The succeeded job of an equal request, if there is one."""
        known = self._succeeded(self._redis.get(self.key("cache", digest)))
        # A job that others share is known a moment before it is remembered.
        return known or self._succeeded(self.shared(digest))

    def remember_statistics(self, digest: str, job_id: str) -> None:
        """Let the next request that would measure the same find this job."""
        self._redis.set(self.key("statistics", digest), job_id)

    def find_statistics(self, digest: str) -> JobRecord | None:
        """A succeeded job that has measured the same, if there is one."""
        return self._succeeded(self._redis.get(self.key("statistics", digest)))

    def _succeeded(self, job_id: Any) -> JobRecord | None:
        try:
            record = self.get(_text(job_id)) if job_id else None
        except JobMissing:
            return None
        return record if record and record.status is JobStatus.SUCCEEDED else None

    def claim_key(self, key: str, *, fingerprint: str, job_id: str) -> tuple[str, str]:
        """Bind an idempotency key to a request, or learn what it is bound to.

        Returns:
            The fingerprint and the job id the key stands for.
        """
        name = self.key("idempotency", key)
        self._redis.set(name, f"{fingerprint} {job_id}", nx=True, ex=IDEMPOTENCY_TTL_S)
        bound = _text(self._redis.get(name)).split(" ")
        return bound[0], bound[1]

    def rebind_key(self, key: str, *, fingerprint: str, job_id: str) -> None:
        """Let an idempotency key stand for the job that its request came to share."""
        value = f"{fingerprint} {job_id}"
        self._redis.set(self.key("idempotency", key), value, ex=IDEMPOTENCY_TTL_S)

    def release_key(self, key: str) -> None:
        """Unbind an idempotency key whose request was refused."""
        self._redis.delete(self.key("idempotency", key))

    def hold_lock(self, name: str, *, ttl_s: float) -> str | None:
        """Take a named lock for a while; ``None`` when somebody else holds it."""
        token = secrets.token_hex(8)
        taken = self._redis.set(self.key("lock", name), token, nx=True, px=int(ttl_s * 1000))
        return token if taken else None

    def drop_lock(self, name: str, token: str) -> None:
        """Give a lock back, unless it ran out and somebody else holds it by now."""
        self._redis.eval(scripts.DROP_LOCK, 1, self.key("lock", name), token)

    # Inside

    def _read(self, ids: Sequence[str], fields: Sequence[str]) -> list[JobRecord | None]:
        """Some fields of some jobs in one round trip; ``None`` for a job that is gone."""
        pipeline = self._redis.pipeline(transaction=False)
        for id_ in ids:
            pipeline.hmget(self._job(id_), fields)
        return [_record(fields, values) for values in pipeline.execute()]

    def _job(self, job_id: str) -> str:
        return self.key("job", job_id)

    def _open(self) -> str:
        return self.key("open_jobs")

    def _events(self, job_id: str) -> str:
        return self.key("events", job_id)

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
            self._job(job_id), self._open(), self._events(job_id), self.key("tallies"),
            self.key("webhooks", job_id), self.key("outbox"),
        ]  # fmt: skip
        lease = "" if lease_s is None else str(int(lease_s * 1000))
        states = f"|{'|'.join(allowed)}|"
        done, status, current = self._redis.eval(
            scripts.CHANGE, len(keys), *keys, str(attempt), states, event, lease, *_flat(fields)
        )
        if done == -1:
            raise JobMissing(f"no job {job_id!r}")
        found = Change(JobStatus(_text(status)), int(current))
        if not done:
            raise StaleAttempt(
                f"job {job_id} is {found.status} in attempt {found.attempt}, "
                f"not in attempt {attempt} and one of {sorted(allowed)}",
                status=found.status,
            )
        return found


def _record(fields: Sequence[str], values: Sequence[Any]) -> JobRecord | None:
    """What HMGET returned for some fields; ``None`` for a job that is gone."""
    stored: dict[Any, Any] = {f: v for f, v in zip(fields, values, strict=True) if v}
    return JobRecord.from_hash(stored) if "id" in stored else None


def _lost(failures: int) -> JobError:
    detail = f"the worker was lost in each of {failures} attempts"
    return JobError(code="worker_lost", detail=detail, retryable=True)


def _event(
    type_: str,
    job_id: str,
    status: JobStatus,
    attempt: int,
    *,
    progress: Progress | None = None,
    error: JobError | None = None,
) -> str:
    body: dict[str, Any] = {
        "type": type_, "job_id": job_id, "status": status, "attempt": attempt,
    }  # fmt: skip
    if progress:
        body["progress"] = progress.model_dump(mode="json")
    if error:
        body["error"] = error.model_dump(mode="json")
    return json.dumps(body)


def _flat(fields: Mapping[str, str]) -> list[str]:
    return [part for pair in fields.items() for part in pair]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _field(fields: Mapping[Any, Any], name: str) -> str:
    return _text(fields.get(name.encode()) or fields[name])
