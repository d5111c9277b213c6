"""What is on record about jobs, for whoever only looks: nothing here changes a job."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from redis import Redis

from fimlora_contract.jobs import FINAL_STATUSES, JobEvent, JobStatus
from fimlora_jobs.answers import as_ms, text_of
from fimlora_jobs.durability import owe
from fimlora_jobs.job_filter import JobFilter
from fimlora_jobs.record import SHOWN_FIELDS, STATE_FIELDS, JobRecord
from fimlora_jobs.scripts import run_script

BATCH = 500
EVERY_JOB = JobFilter()


class JobMissing(LookupError):
    """There is no job with that id."""


class Change(NamedTuple):
    """Where a job stands after a change."""

    status: JobStatus
    attempt: int


class JobReader:
    """Job records under one key prefix of a Redis server.

    Args:
        redis: A connected redis-py client; it may decode answers or not.
        prefix: Before every key, so that several services can share a server.
    """

    def __init__(self, redis: Redis, *, prefix: str = "fimlora:") -> None:
        self._redis = redis
        self._prefix = prefix

    @property
    def redis(self) -> Redis:
        """The client, for what is kept beside the jobs."""
        return self._redis

    def key(self, *parts: str) -> str:
        """A key of this service."""
        return self._prefix + ":".join(parts)

    def now_ms(self) -> int:
        """The server's clock in milliseconds."""
        return as_ms(self._redis.time())

    def shared(self, digest: str) -> str:
        """Id of the newest job that equal requests may share, empty when there was none."""
        return text_of(self._redis.get(self.key("shared", digest)) or "")

    def get(self, job_id: str) -> JobRecord:
        """Read a job.

        Raises:
            JobMissing: There is no such job.
        """
        stored = self._redis.hgetall(self._job(job_id))
        if not stored:
            raise JobMissing(f"no job {job_id!r}")
        return _told(JobRecord.from_hash(stored))

    def has(self, job_id: str) -> bool:
        """Whether there is such a job."""
        return bool(self._redis.exists(self._job(job_id)))

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
        return JobStatus(text_of(status))

    def owner_of(self, job_id: str) -> str:
        """Read only whose a job is.

        Raises:
            JobMissing: There is no such job.
        """
        id_, owner = self._redis.hmget(self._job(job_id), ("id", "owner"))
        if id_ is None:
            raise JobMissing(f"no job {job_id!r}")
        return text_of(owner or "")

    def page(
        self,
        *,
        limit: int,
        before: str | None = None,
        wanted: JobFilter = EVERY_JOB,
        owner: str | None = None,
    ) -> list[JobRecord]:
        """Jobs from newest to oldest.

        Args:
            limit: How many at most.
            before: Start after this id.
            wanted: Those that it matches only.
            owner: Of this tenant only; empty for the operator's own.
        """
        ids = (
            self._ids(before, at_most=limit, owner=owner or "")
            if wanted.is_empty and owner != ""
            else list(islice(self._ids_where(before, wanted=wanted, owner=owner), limit))
        )
        return [record for record in self._read(ids, SHOWN_FIELDS) if record]

    def _ids(self, before: str | None, *, at_most: int, owner: str = "") -> list[str]:
        """Ids from newest to oldest."""
        start = f"({before}" if before else "+"
        listed = self.key("jobs", owner) if owner else self.key("jobs")
        ids = self._redis.zrevrangebylex(listed, start, "-", start=0, num=at_most)
        return [text_of(id_) for id_ in ids]

    def _ids_where(
        self, before: str | None, *, wanted: JobFilter, owner: str | None
    ) -> Iterator[str]:
        """Ids that match, of which no list is kept: all newer ones are looked at.

        Those of jobs that have not ended are, and are few: of them alone, if no others match.
        Of others, status and kind are looked at where they lie, and only those that have the
        right ones are read.
        """
        is_open = wanted.statuses and not wanted.statuses & FINAL_STATUSES
        batches = self._open_ids(before) if is_open else self._all_ids(before, owner or "")
        for ids in batches:
            for record in self._read(self._among(ids, wanted), wanted.fields):
                if record and owner in (None, record.owner) and wanted.matches(record):
                    yield record.id

    def _among(self, ids: list[str], wanted: JobFilter) -> list[str]:
        """Those of some jobs that are of the wanted statuses and kind."""
        if not (wanted.statuses or wanted.kind):
            return ids
        statuses = " ".join(["", *sorted(wanted.statuses), ""]) if wanted.statuses else ""
        found = run_script(
            self._redis,
            "among",
            keys=[*map(self._job, ids)],
            args=[wanted.kind or "", statuses],
        )
        return [ids[int(place)] for place in found]

    def _all_ids(self, before: str | None, owner: str) -> Iterator[list[str]]:
        while ids := self._ids(before, at_most=BATCH, owner=owner):
            yield ids
            before = ids[-1]

    def _open_ids(self, before: str | None) -> Iterator[list[str]]:
        ids = map(text_of, self._redis.hkeys(self._open()))
        found = sorted((id_ for id_ in ids if not before or id_ < before), reverse=True)
        return (found[start : start + BATCH] for start in range(0, len(found), BATCH))

    def ids_before(self, created_ms: int, *, limit: int) -> list[str]:
        """Ids of jobs created before a time, the oldest first."""
        end = f"(job_{max(created_ms, 0):011x}"
        ids = self._redis.zrangebylex(self.key("jobs"), "-", end, start=0, num=limit)
        return [text_of(id_) for id_ in ids]

    def open_jobs(self) -> dict[str, Change]:
        """All jobs that have not ended, each with its status and attempt."""
        stored = self._redis.hgetall(self._open())
        parts = {text_of(id_): text_of(value).split(" ") for id_, value in stored.items()}
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
        return [text_of(id_) for id_ in passed]

    def missing_ids(self) -> set[str]:
        """Jobs of which an attempt was noted as missing."""
        return {text_of(id_) for id_ in self._redis.smembers(self.key("missing"))}

    def states(self, ids: Iterable[str]) -> Iterator[tuple[JobRecord, int]]:
        """What is needed to look after jobs that are still on record, and when that was so.

        A lease that is renewed between two readings says nothing by the time of the first.
        """
        wanted = sorted(ids)
        for start in range(0, len(wanted), BATCH):
            pipeline = self._redis.pipeline(transaction=True)
            for id_ in wanted[start : start + BATCH]:
                pipeline.hmget(self._job(id_), STATE_FIELDS)
            pipeline.time()
            *found, now = pipeline.execute()
            for values in found:
                if record := read_record(STATE_FIELDS, values):
                    yield record, as_ms(now)

    def events(self, job_id: str, *, after: str = "0", limit: int = 500) -> list[JobEvent]:
        """The job's history behind the event ``after``, oldest first."""
        entries = self._redis.xrange(
            self._events(job_id), min=f"({after}", max="+", count=limit
        )
        found = [
            JobEvent(id=text_of(id_), **json.loads(_field(fields or {}, "event")))
            for id_, fields in entries or ()
        ]
        for event in found:
            if event.status.is_final:
                owe(int(event.id.partition("-")[0]))
        return found

    def _read(self, ids: Sequence[str], fields: Sequence[str]) -> list[JobRecord | None]:
        """Some fields of some jobs in one round trip; ``None`` for a job that is gone."""
        pipeline = self._redis.pipeline(transaction=False)
        for id_ in ids:
            pipeline.hmget(self._job(id_), fields)
        return [read_record(fields, values) for values in pipeline.execute()]

    def _job(self, job_id: str) -> str:
        return self.key("job", job_id)

    def _open(self) -> str:
        return self.key("open_jobs")

    def _events(self, job_id: str) -> str:
        return self.key("events", job_id)


def read_record(fields: Sequence[str], values: Sequence[Any]) -> JobRecord | None:
    """What HMGET returned for some fields; ``None`` for a job that is gone."""
    stored: dict[Any, Any] = {f: v for f, v in zip(fields, values, strict=True) if v}
    return _told(JobRecord.from_hash(stored)) if "id" in stored else None


def _told(record: JobRecord) -> JobRecord:
    """A record as it is read: that a job has ended is told only once it is on disk."""
    if record.status.is_final:
        owe(record.updated_at_ms)
    return record


def _field(fields: Mapping[Any, Any], name: str) -> str:
    return text_of(fields.get(name.encode()) or fields[name])
