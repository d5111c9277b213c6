"""Idempotency keys: who repeats a request under one gets the job that it already has.

A key is bound to a job id before the job exists. A request that died in between is repeated by
its client, finds the id it was promised, and finishes what was begun.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fimlora_contract.digests import digest_of
from fimlora_jobs.reader import JobMissing
from fimlora_jobs.record import JobRecord
from fimlora_jobs.store import JobStore
from fimlora_service.calibrations.job_spec import Accepted
from fimlora_service.calibrations.live_locks import LiveLocks
from fimlora_service.errors import IdempotencyInFlight, IdempotencyMismatch, ServiceError


@dataclass(frozen=True, slots=True)
class Promise:
    """The job id that a key is bound to.

    Attributes:
        key: The key.
        name: What is kept of it: a key of one tenant is none of another.
        fingerprint: Of what the key stands for.
        job_id: The id of the job that is there, or is to be made.
        is_new: The key was bound just now, so that no job has been made under it before.
    """

    key: str
    name: str
    fingerprint: str
    job_id: str
    is_new: bool


class KeyMoved(Exception):
    """While a request waited, its key has come to stand for another job."""


def bind(
    store: JobStore, key: str | None, content: Mapping[str, Any], *, owner: str
) -> Promise | None:
    """Bind a key to the id of a job, or find the one that it was bound to before.

    Raises:
        IdempotencyMismatch: It belongs to another content.
    """
    if key is None:
        return None
    new_id, fingerprint = store.new_id(), digest_of(content)
    name = f"{owner}\n{key}" if owner else key  # no key has a line break
    bound, job_id = store.claim_key(name, fingerprint=fingerprint, job_id=new_id)
    if bound != fingerprint:
        raise IdempotencyMismatch(f"Idempotency-Key {key!r} belongs to another request")
    return Promise(key, name, fingerprint, job_id, is_new=job_id == new_id)


def find_kept(store: JobStore, promise: Promise | None) -> JobRecord | None:
    """The promised job, if it is on record."""
    if promise is None or promise.is_new:
        return None
    try:
        return store.get(promise.job_id)
    except JobMissing:
        return None


@contextmanager
def in_flight(
    store: JobStore, locks: LiveLocks, promise: Promise | None
) -> Iterator[JobRecord | None]:
    """Make a promised job inside the block, as the only one who does.

    The block is given the job that somebody else has made since the last look.

    Raises:
        IdempotencyInFlight: Somebody else does.
        KeyMoved: The key stands for another job by now: to be bound anew.
        ServiceError: What the block refuses; the key is free again.
    """
    if promise is None:
        yield None
        return
    with locks.hold(f"submit:{promise.job_id}") as is_held:
        if not is_held:
            raise IdempotencyInFlight(
                f"a request with Idempotency-Key {promise.key!r} is in flight"
            )
        # One that was released in the meantime is ours again.
        bound, kept = store.claim_key_again(
            promise.name, fingerprint=promise.fingerprint, job_id=promise.job_id
        )
        if bound != (promise.fingerprint, promise.job_id):
            raise KeyMoved(promise.key)
        try:
            yield kept
        except ServiceError:
            store.release_key(promise.name)  # nothing came of it: the key stays free
            raise


def keep(store: JobStore, promise: Promise | None, accepted: Accepted) -> None:
    """Let a key stand for the job that its request came to, which may be an earlier one."""
    if promise is None:
        return
    job_id = accepted.record.id
    if accepted.cached:
        store.release_key(promise.name)  # the cache answers a repetition just the same
        return
    if job_id != promise.job_id:
        store.rebind_key(promise.name, fingerprint=promise.fingerprint, job_id=job_id)
    store.free_with(job_id, promise.name)
