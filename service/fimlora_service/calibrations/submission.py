"""Accept a request exactly once: idempotency key, result cache, record, queue.

The order makes every crash harmless. A key is bound to a job id before the job exists, so
a repeated request finds that id and finishes what was begun; the record is made before the
queue is told, so a job that was never queued is found by the reaper. Equal requests that come
while one of them is open share its job: a hundred of them cost one calibration.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from redis.exceptions import LockNotOwnedError, RedisError

from fimlora_contract.digests import digest_of
from fimlora_contract.jobs import JobStatus
from fimlora_contract.requests import CalibrationRequest
from fimlora_jobs.deduplication import Lookup
from fimlora_jobs.outbox import Outbox
from fimlora_jobs.queue import RqTransport
from fimlora_jobs.record import JobRecord, new_job_id
from fimlora_jobs.results.store import STATISTICS
from fimlora_jobs.results.tracked import TrackedArtifacts
from fimlora_jobs.store import JobMissing, JobStore, RequestTaken
from fimlora_service.calibrations.job_spec import Accepted, Known, Outcome, Work
from fimlora_service.errors import (
    IdempotencyInFlight,
    IdempotencyMismatch,
    JobAlreadyFinished,
    JobNotFinished,
    ServiceError,
)
from fimlora_service.resolve.resolver import Resolved, Resolver
from fimlora_service.webhooks.delivery import check_webhook
from fimlora_service.webhooks.options import allowed_origins

SUBMIT_LOCK_S = 120.0
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Submission:
    """Everything needed to accept requests."""

    store: JobStore
    transport: RqTransport
    resolver: Resolver
    artifacts: TrackedArtifacts
    webhook_hosts: str = ""

    def accept(self, request: CalibrationRequest, *, key: str | None) -> Accepted:
        """Accept a request, once per idempotency key.

        Raises:
            ServiceError: The request is refused; its key stays free.
        """
        self.check_webhook(request)
        accepted = self._accept(request, key=key)
        if request.webhook and not accepted.cached:
            self._announce(accepted.record, [request.webhook])
        return accepted

    def check_webhook(self, request: CalibrationRequest) -> None:
        """Refuse a webhook that would never be called."""
        if request.webhook:
            check_webhook(request.webhook, allowed=allowed_origins(self.webhook_hosts))

    def _accept(self, request: CalibrationRequest, *, key: str | None) -> Accepted:
        content = request.model_dump(mode="json")
        return self._once(key, content, partial(self._resolve_and_queue, request))

    def _once(
        self, key: str | None, content: Mapping[str, Any], accept: Callable[..., Accepted]
    ) -> Accepted:
        """Accept something once per idempotency key.

        Args:
            key: The key, if there is one.
            content: What the key stands for.
            accept: Accepts it, given the ``job_id`` that is promised to the key.
        """
        if key is None:
            return accept()
        job_id, fingerprint = self.store.new_id(), digest_of(content)
        bound, job_id = self.store.claim_key(key, fingerprint=fingerprint, job_id=job_id)
        if bound != fingerprint:
            raise IdempotencyMismatch(f"Idempotency-Key {key!r} belongs to another request")
        try:
            return Accepted(self.store.get(job_id), "repeated")
        except JobMissing:
            return self._accept_once(accept, job_id, key=key, fingerprint=fingerprint)

    def repeat(self, record: JobRecord, *, key: str | None) -> JobRecord:
        """Queue the request of a job that failed or was canceled once more, as a new job.

        A final state never changes, so whoever followed the first job has seen its end. Equal
        retries share a job while it is open; those under one key do so for good, and also
        where the request is to have a job of its own.

        Raises:
            JobNotFinished: It has not ended.
            JobAlreadyFinished: It has succeeded.
        """
        if not record.status.is_final:
            raise JobNotFinished(f"job {record.id!r} is {record.status}")
        if record.status is JobStatus.SUCCEEDED:
            raise JobAlreadyFinished(f"job {record.id!r} has already succeeded")
        work = Work(
            record.request,
            record.resolved,
            digest=record.fields["request_digest"],
            statistics_digest=record.fields.get("statistics_digest", ""),
            tenant=record.fields.get("tenant", ""),
        )
        known = Known(measured=self._measured_by(record.fields.get("statistics_from")))
        queue = partial(self._share_or_queue, work, lambda _: known)
        again = self._once(key, {"retry": record.id}, queue).record
        self._announce(again, Outbox(self.store).addresses(record.id))
        return again

    def _accept_once(
        self, accept: Callable[..., Accepted], job_id: str, *, key: str, fingerprint: str
    ) -> Accepted:
        lock = self.store.lock(f"submit:{job_id}", ttl_s=SUBMIT_LOCK_S)
        if not lock.acquire():
            raise IdempotencyInFlight(f"a request with Idempotency-Key {key!r} is in flight")
        try:
            accepted = accept(job_id=job_id)
        except ServiceError:
            self.store.release_key(key)  # nothing came of it: the key stays free
            raise
        else:
            if accepted.cached:
                self.store.release_key(key)  # the cache answers a repetition just the same
            elif accepted.record.id != job_id:
                shared = accepted.record.id
                self.store.rebind_key(key, fingerprint=fingerprint, job_id=shared)
            return accepted
        finally:
            with suppress(LockNotOwnedError):  # it ran out; what was accepted is accepted
                lock.release()

    def find_open(self, request: CalibrationRequest, resolved: Resolved) -> str | None:
        """Id of the open job that a request would share, if there is one."""
        work = Work.of(request, resolved)
        job_id = "" if work.alone else self.store.shared(work.digest)
        with suppress(JobMissing):
            if job_id and self.store.status_of(job_id) in {JobStatus.QUEUED, JobStatus.RUNNING}:
                return job_id
        return None

    def find_known(self, request: CalibrationRequest, resolved: Resolved) -> Known:
        """What earlier jobs have found of what a request asks for."""
        if request.force:
            return Known()
        if result := self._find_result(resolved):
            return Known(result=result)
        return Known(measured=self._find_statistics(resolved))

    def _resolve_and_queue(
        self, request: CalibrationRequest, *, job_id: str | None = None
    ) -> Accepted:
        resolved = self.resolver.resolve(request)
        work = Work.of(request, resolved)

        def find_known(lookup: Lookup) -> Known:
            # Most requests are new: what was not there a moment ago need not be looked at.
            return Known() if lookup.is_new else self.find_known(request, resolved)

        accepted = self._share_or_queue(work, find_known, job_id=job_id, counted=True)
        if accepted.outcome in {"cached", "shared"}:  # a new job is counted as it is made
            with suppress(RedisError):  # the job is accepted, counted or not
                self.artifacts.usage.count(accepted.outcome)
        return accepted

    def _share_or_queue(
        self,
        work: Work,
        find_known: Callable[[Lookup], Known],
        *,
        job_id: str | None = None,
        counted: bool = False,
    ) -> Accepted:
        """Share the open job of equal requests, or put a new one on record and queue it.

        Args:
            work: What is asked for.
            find_known: Finds earlier jobs that save work.
            job_id: The id of the new job, if it has been promised.
            counted: Whether a new job is counted by what it saves.
        """
        while True:
            # In this order: a job that ends after the first line is found by the last look.
            lookup = self.store.look_up(work.digest, work.statistics_digest)
            first = "" if work.alone else lookup.shared
            if first and (record := self.store.join(first)):
                logger.info("job.shared", extra={"job_id": first, "digest": work.digest})
                if work.is_urgent:
                    self._promote(record)
                return Accepted(record, "shared")
            known = find_known(lookup)
            if known.result:
                fields = {"job_id": known.result.id, "digest": work.digest}
                logger.info("job.cached", extra=fields)
                return Accepted(known.result, "cached")
            outcome: Outcome = "replanned" if known.measured else "measured"
            try:
                record = self.store.create(
                    job_id or new_job_id(lookup.now_ms),
                    request=work.request,
                    resolved=work.resolved,
                    digest=work.digest,
                    statistics_digest=work.statistics_digest,
                    tenant=work.tenant,
                    statistics_from=known.measured.id if known.measured else "",
                    in_place_of=None if work.alone else first,
                    counted_as=outcome if counted else "",
                )
            except RequestTaken:
                continue  # an equal request was faster
            self._enqueue(record, is_urgent=work.is_urgent)
            return Accepted(record, outcome)

    def _find_result(self, resolved: Resolved) -> JobRecord | None:
        record = self.store.find_result(resolved.digest)
        result = record.json_field("result") if record else None
        is_there = result is not None and self.artifacts.exists(result["digest"])
        return record if is_there else None

    def _find_statistics(self, resolved: Resolved) -> JobRecord | None:
        record = self.store.find_statistics(resolved.statistics_digest)
        result = record.json_field("result") if record else None
        if result is None:
            return None
        return record if self.artifacts.exists(result["digest"], STATISTICS) else None

    def _measured_by(self, job_id: str | None) -> JobRecord | None:
        """The job whose statistics another was accepted with, if it is still on record."""
        try:
            return self.store.get(job_id) if job_id else None
        except JobMissing:
            return None

    def _enqueue(self, record: JobRecord, *, is_urgent: bool) -> None:
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
            if is_urgent and not at_front:
                self._promote(record)

    def _announce(self, record: JobRecord, addresses: Iterable[str]) -> None:
        with suppress(JobMissing):  # deleted in the meantime: nobody is to be told
            for address in addresses:
                Outbox(self.store).add(record.id, address)

    def _promote(self, record: JobRecord) -> None:
        try:
            self.transport.promote(record.id, record.attempt)
        except RedisError as error:
            fields = {"job_id": record.id, "error": str(error)}
            logger.warning("job.promote_failed", extra=fields)
