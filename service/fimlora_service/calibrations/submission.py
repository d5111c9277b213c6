"""Accept a request exactly once: idempotency key, result cache, record, queue.

The order makes every crash harmless. A key is bound to a job id before the job exists, so
a repeated request finds that id and finishes what was begun; the record is made before the
queue is told, so a job that was never queued is found by the reaper. Equal requests that come
while one of them is open share its job: a hundred of them cost one calibration.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from redis.exceptions import RedisError

from fimlora_contract.jobs import JobKind, JobStatus
from fimlora_contract.requests import CalibrationRequest
from fimlora_jobs.data_folder import FreeSpace
from fimlora_jobs.deduplication import Lookup
from fimlora_jobs.durability import owe
from fimlora_jobs.logs import in_context
from fimlora_jobs.open_limits import NO_LIMITS, OpenLimits, TooManyOpen
from fimlora_jobs.outbox import Outbox
from fimlora_jobs.queue import RqTransport
from fimlora_jobs.reader import JobMissing
from fimlora_jobs.record import JobRecord, new_job_id
from fimlora_jobs.results.tracked import TrackedArtifacts
from fimlora_jobs.runs import Runs
from fimlora_jobs.store import JobStore, RequestTaken
from fimlora_jobs.telemetry import current_traceparent
from fimlora_service.calibrations.earlier_jobs import find_reusable
from fimlora_service.calibrations.idempotency import (
    KeyMoved,
    Promise,
    bind,
    find_kept,
    in_flight,
    keep,
)
from fimlora_service.calibrations.job_spec import Accepted, JobSpec, Reusable
from fimlora_service.calibrations.live_locks import LiveLocks
from fimlora_service.calibrations.queue_limits import refusal_of
from fimlora_service.errors import DiskFull, JobAlreadyFinished, JobNotFinished
from fimlora_service.keys.principal import Principal
from fimlora_service.resolve.resolver import Resolved, Resolver
from fimlora_service.webhooks.delivery import check_webhook

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Submission:
    """Everything needed to accept requests."""

    store: JobStore
    transport: RqTransport
    resolver: Resolver
    artifacts: TrackedArtifacts
    locks: LiveLocks
    webhook_origins: frozenset[str] = frozenset()
    limits: OpenLimits = NO_LIMITS
    space: FreeSpace | None = None
    owner: str = ""

    def of(self, principal: Principal) -> "Submission":
        """The same for somebody: what is accepted is his tenant's, and so are its keys."""
        resolver = self.resolver.of(principal)
        return replace(self, resolver=resolver, owner=principal.tenant)

    def accept(
        self,
        request: CalibrationRequest,
        *,
        key: str | None,
        kind: JobKind = JobKind.CALIBRATION,
        resolve: Callable[[CalibrationRequest], Resolved] | None = None,
    ) -> Accepted:
        """Accept a request, once per idempotency key.

        Args:
            request: What is asked for.
            key: The idempotency key, if there is one.
            kind: What the job is for.
            resolve: Pins the request to content; by default the resolver does.

        Raises:
            ServiceError: The request is refused; its key stays free.
        """
        self.check_webhook(request)

        def make(promise: Promise | None) -> Accepted:
            resolved = (resolve or self.resolver.resolve)(request)
            spec = JobSpec.of(request, resolved, kind, owner=self.owner)
            accepted = self._carry_out(spec, promise=promise)
            self._count(accepted)
            return accepted

        accepted = self._once(key, {"kind": kind} | request.model_dump(mode="json"), make)
        if request.webhook and not accepted.cached:
            self._announce(accepted.record, [request.webhook])
        return accepted

    def check_webhook(self, request: CalibrationRequest) -> None:
        """Refuse a webhook that would never be called."""
        if request.webhook:
            check_webhook(request.webhook, allowed=self.webhook_origins)

    def repeat(self, record: JobRecord, *, key: str | None) -> JobRecord:
        """Queue the request of a job that failed or was canceled once more, as a new job.

        A final state never changes, so whoever followed the first job has seen its end. Equal
        retries share a job while it is open; those under one key do so for good, and also
        where the request is to have a job of its own.

        Raises:
            JobNotFinished: It has not ended.
            JobAlreadyFinished: It has succeeded.
            NotAllowed: The operator does not allow any more what it uses.
        """
        if not record.status.is_final:
            raise JobNotFinished(f"job {record.id!r} is {record.status}")
        if record.status is JobStatus.SUCCEEDED:
            raise JobAlreadyFinished(f"job {record.id!r} has already succeeded")
        self.resolver.allowed.check_request(record.request)

        def make(promise: Promise | None) -> Accepted:
            return self._carry_out(JobSpec.again(record), promise=promise)

        again = self._once(key, {"retry": record.id}, make).record
        owe()
        self._announce(again, Outbox(self.store).addresses(record.id))
        return again

    def _once(
        self,
        key: str | None,
        content: Mapping[str, Any],
        make: Callable[[Promise | None], Accepted],
    ) -> Accepted:
        """What a key has come to already, or what is made under it now."""
        while True:
            promise = bind(self.store, key, content, owner=self.owner)
            if kept := find_kept(self.store, promise):
                return _repeated(kept)
            try:
                with in_flight(self.store, self.locks, promise) as kept:
                    if kept:
                        return _repeated(kept)
                    accepted = make(promise)
                    keep(self.store, promise, accepted)
                    return accepted
            except KeyMoved:
                continue

    def _carry_out(self, spec: JobSpec, *, promise: Promise | None) -> Accepted:
        """Share the open job of equal requests, answer with a result, or queue a new job.

        Args:
            spec: What is asked for.
            promise: Of the id that a new job gets.

        Raises:
            QueueFull, QuotaExceeded: It needs a job of its own, and there are too many.
        """
        while True:
            # In this order: a job that ends after the first line is found by the last look.
            lookup = self.store.look_up(spec.digest, spec.statistics_digest)
            if shared := self._share(spec, lookup):
                return Accepted(shared, "shared")
            reusable = self._find_reusable(spec, lookup)
            if reusable.result:
                fields = {"job_id": reusable.result.id, "digest": spec.digest}
                logger.info("job.cached", extra=fields)
                return Accepted(reusable.result, "cached")
            try:
                record = self._create(spec, lookup, reusable, promise=promise)
            except RequestTaken:
                continue  # an equal request was faster
            except TooManyOpen as full:
                raise refusal_of(full, self.store) from full
            if spec.runs_from:  # before a worker can look for them
                Runs(self.store, record.id).adopt(spec.runs_from)
            self._enqueue(record, is_urgent=spec.is_urgent)
            return Accepted(record, reusable.outcome)

    def _share(self, spec: JobSpec, lookup: Lookup) -> JobRecord | None:
        if spec.alone or not lookup.shared:
            return None
        record = self.store.join(lookup.shared)
        if record:
            logger.info("job.shared", extra={"job_id": record.id, "digest": spec.digest})
            if spec.is_urgent:
                self._promote(record)
        return record

    def _find_reusable(self, spec: JobSpec, lookup: Lookup) -> Reusable:
        # Most requests are new: what was not there a moment ago need not be looked at.
        if lookup.is_new and not spec.is_retry:
            return Reusable()
        return find_reusable(spec, self.store, self.artifacts)

    def _create(
        self, spec: JobSpec, lookup: Lookup, reusable: Reusable, *, promise: Promise | None
    ) -> JobRecord:
        if lacking := self.space.lacks() if self.space else "":
            raise DiskFull(lacking)
        return self.store.create(
            promise.job_id if promise else new_job_id(lookup.now_ms),
            kind=spec.kind,
            request=spec.request,
            resolved=spec.resolved,
            digest=spec.digest,
            statistics_digest=spec.statistics_digest,
            tenant=spec.tenant,
            owner=spec.owner,
            statistics_from=reusable.measured.id if reusable.measured else "",
            in_place_of=None if spec.alone else lookup.shared,
            counted_as="" if spec.is_retry else reusable.outcome,
            came_with={
                "request_id": in_context("request_id") or "",
                "traceparent": current_traceparent(),
            },
            limits=self.limits,
        )

    def _enqueue(self, record: JobRecord, *, is_urgent: bool) -> None:
        fields = {"job_id": record.id, "attempt": record.attempt}
        # Without a measurement a job takes milliseconds: it need not wait for those with.
        is_short = bool(record.fields.get("statistics_from"))
        at_front = is_short and record.kind is JobKind.CALIBRATION
        try:
            self.transport.enqueue(record.id, record.attempt, at_front=at_front)
        except RedisError as error:
            # The job is on record, so it is accepted: the reaper queues it.
            logger.warning("job.enqueue_failed", extra=fields | {"error": str(error)})
        else:
            logger.info("job.queued", extra=fields)
            if is_urgent and not at_front:
                self._promote(record)

    def _promote(self, record: JobRecord) -> None:
        try:
            self.transport.promote(record.id, record.attempt)
        except RedisError as error:
            fields = {"job_id": record.id, "error": str(error)}
            logger.warning("job.promote_failed", extra=fields)

    def _count(self, accepted: Accepted) -> None:
        if accepted.outcome in {"cached", "shared"}:  # a new job is counted as it is made
            with suppress(RedisError):  # the job is accepted, counted or not
                self.artifacts.usage.count(accepted.outcome)

    def _announce(self, record: JobRecord, addresses: Iterable[str]) -> None:
        with suppress(JobMissing):  # deleted in the meantime: nobody is to be told
            for address in addresses:
                Outbox(self.store).add(record.id, address)


def _repeated(kept: JobRecord) -> Accepted:
    owe()  # it was made by a request that may not have been answered
    return Accepted(kept, "repeated")
