"""Accept a request exactly once: idempotency key, result cache, record, queue.

The order makes every crash harmless. A key is bound to a job id before the job exists, so
a repeated request finds that id and finishes what was begun; the record is made before the
queue is told, so a job that was never queued is found by the reaper.
"""

import logging
from dataclasses import dataclass

from redis.exceptions import RedisError

from fimlora_contract.digests import digest_of
from fimlora_contract.jobs import JobStatus
from fimlora_contract.records import JobRecord
from fimlora_contract.requests import CalibrationRequest
from fimlora_contract.store import JobMissing, JobStore
from fimlora_service.data_folder import DataFolder
from fimlora_service.errors import (
    IdempotencyInFlight,
    IdempotencyMismatch,
    JobAlreadyFinished,
    JobNotFinished,
    ServiceError,
)
from fimlora_service.queue import RqTransport
from fimlora_service.resolve import Resolved, Resolver

SUBMIT_LOCK_S = 120.0
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Accepted:
    """What became of a request.

    Attributes:
        record: The job that carries it.
        cached: Whether that job belongs to an earlier, equal request.
    """

    record: JobRecord
    cached: bool


@dataclass(frozen=True, slots=True)
class Known:
    """Earlier jobs that save work.

    Attributes:
        result: One that an equal request has made.
        measured: One that has measured the same.
    """

    result: JobRecord | None = None
    measured: JobRecord | None = None


@dataclass(frozen=True, slots=True)
class Submission:
    """Everything needed to accept requests."""

    store: JobStore
    transport: RqTransport
    resolver: Resolver
    data_folder: DataFolder

    def accept(self, request: CalibrationRequest, *, key: str | None) -> Accepted:
        """Accept a request, once per idempotency key.

        Raises:
            ServiceError: The request is refused; its key stays free.
        """
        job_id = self.store.new_id()
        if key is None:
            return self._resolve_and_queue(request, job_id)
        fingerprint = digest_of(request.model_dump(mode="json"))
        bound, job_id = self.store.claim_key(key, fingerprint=fingerprint, job_id=job_id)
        if bound != fingerprint:
            raise IdempotencyMismatch(f"Idempotency-Key {key!r} belongs to another body")
        try:
            return Accepted(self.store.get(job_id), cached=False)
        except JobMissing:
            return self._accept_once(request, job_id, key=key)

    def repeat(self, record: JobRecord) -> JobRecord:
        """Queue the request of a job that failed or was canceled once more, as a new job.

        A final state never changes, so whoever followed the first job has seen its end.

        Raises:
            JobNotFinished: It has not ended.
            JobAlreadyFinished: It has succeeded.
        """
        if not record.status.is_final:
            raise JobNotFinished(f"job {record.id!r} is {record.status}")
        if record.status is JobStatus.SUCCEEDED:
            raise JobAlreadyFinished(f"job {record.id!r} has already succeeded")
        fields = ("statistics_digest", "statistics_from")
        again = self.store.create(
            self.store.new_id(),
            request=record.request,
            resolved=record.resolved,
            digest=record.fields["request_digest"],
            **{name: record.fields.get(name, "") for name in fields},
        )
        self._enqueue(again)
        return again

    def _accept_once(self, request: CalibrationRequest, job_id: str, *, key: str) -> Accepted:
        lock = f"submit:{job_id}"
        token = self.store.hold_lock(lock, ttl_s=SUBMIT_LOCK_S)
        if token is None:
            raise IdempotencyInFlight(f"a request with Idempotency-Key {key!r} is in flight")
        try:
            accepted = self._resolve_and_queue(request, job_id)
        except ServiceError:
            self.store.release_key(key)  # nothing came of it: the key stays free
            raise
        else:
            if accepted.cached:
                self.store.release_key(key)  # the cache answers a repetition just the same
            return accepted
        finally:
            self.store.drop_lock(lock, token)

    def find_known(self, request: CalibrationRequest, resolved: Resolved) -> Known:
        """What earlier jobs have found of what a request asks for."""
        if request.force:
            return Known()
        if result := self._find_result(resolved):
            return Known(result=result)
        return Known(measured=self._find_statistics(resolved))

    def _resolve_and_queue(self, request: CalibrationRequest, job_id: str) -> Accepted:
        resolved = self.resolver.resolve(request)
        known = self.find_known(request, resolved)
        if known.result:
            fields = {"job_id": known.result.id, "digest": resolved.digest}
            logger.info("job.cached", extra=fields)
            return Accepted(known.result, cached=True)
        record = self.store.create(
            job_id,
            request=request.model_dump(mode="json", exclude={"validate_only"}),
            resolved=resolved.references,
            digest=resolved.digest,
            statistics_digest=resolved.statistics_digest,
            statistics_from=known.measured.id if known.measured else "",
        )
        self._enqueue(record)
        return Accepted(record, cached=False)

    def _find_result(self, resolved: Resolved) -> JobRecord | None:
        record = self.store.find_result(resolved.digest)
        result = record.json_field("result") if record else None
        is_there = result is not None and self.data_folder.result(result["digest"]).is_dir()
        return record if is_there else None

    def _find_statistics(self, resolved: Resolved) -> JobRecord | None:
        record = self.store.find_statistics(resolved.statistics_digest)
        result = record.json_field("result") if record else None
        if result is None:
            return None
        file = self.data_folder.result(result["digest"]) / "statistics.safetensors"
        return record if file.is_file() else None

    def _enqueue(self, record: JobRecord) -> None:
        fields = {"job_id": record.id, "attempt": record.attempt}
        # Without a measurement a job takes milliseconds: it need not wait for those with.
        at_front = bool(record.fields.get("statistics_from"))
        try:
            self.transport.enqueue(record.id, record.attempt, at_front=at_front)
        except RedisError as error:
            # The job is on record, so it is accepted: the reaper queues it.
            logger.warning("job.enqueue_failed", extra=fields | {"error": str(error)})
        else:
            logger.info("job.queued", extra=fields)
