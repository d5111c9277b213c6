"""A store of jobs that has lost its data, filled again from what is kept beside the results.

Records of jobs that have succeeded and pins come back, each to the tenant whose it was. Nothing on
record is overwritten, so doing it twice, or in two processes, changes nothing. Keys of the API never
come from files: who could write there would let himself in.
"""

import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Event
from typing import NamedTuple

from fimlora_contract.jobs import JobKind, JobStatus
from fimlora_jobs.catalogue import Catalogue, among_all, input_keys
from fimlora_jobs.disk import refusal_in
from fimlora_jobs.events import event_text
from fimlora_jobs.reader import BATCH, JobMissing
from fimlora_jobs.record import JobRecord
from fimlora_jobs.result_owners import ALL, ResultOwners
from fimlora_jobs.results.kept_pins import KeptPin, KeptPins
from fimlora_jobs.results.kept_records import OF_ITS_END, KeptRecords
from fimlora_jobs.results.store import StorageUnavailable
from fimlora_jobs.results.tracked import TrackedArtifacts
from fimlora_jobs.retention import is_past
from fimlora_jobs.scripts import run_script
from fimlora_jobs.store import JobStore

MARK = "rebuilt"  # there as long as the store has its data
MOST_JOBS = 1_000_000
log = logging.getLogger(__name__)


class Rebuilt(NamedTuple):
    """What was put back, and what is kept from now on.

    Attributes:
        jobs: Records that came back.
        pins: Pins that came back.
        kept: Records and pins that were on record and not kept.
    """

    jobs: int = 0
    pins: int = 0
    kept: int = 0


@dataclass
class Rebuilding:
    """Looks whether the store has its data, and fills it if not.

    Attributes:
        artifacts: What keeps the results, and the notes beside them.
        days: How long the record of a job is kept.
        tried: Set once it has been tried, whatever came of it.
    """

    artifacts: TrackedArtifacts
    days: float
    tried: Event = field(default_factory=Event)
    _is_done: bool = False

    @property
    def store(self) -> JobStore:
        """The store."""
        return self.artifacts.usage.store

    def is_due(self) -> bool:
        """Whether the store has lost its data, and not all that can has come back yet."""
        return not self.store.redis.exists(self.store.key(MARK))

    def look(self) -> None:
        """Fill the store if this process has not yet done so, or it has lost its data since."""
        try:
            if not self._is_done or self.is_due():
                self._rebuild()
        except (StorageUnavailable, OSError) as error:
            if not isinstance(error, StorageUnavailable) and refusal_in(error) is None:
                raise
            log.warning("records.not_rebuilt", extra={"reason": str(error)})
        finally:
            self.tried.set()

    def _rebuild(self) -> None:
        self._is_done = False
        found = rebuild(self.artifacts, days=self.days)
        self.store.redis.set(self.store.key(MARK), self.store.now_ms(), nx=True)
        self._is_done = True
        if any(found):
            log.warning("records.rebuilt", extra=found._asdict())


def rebuild(artifacts: TrackedArtifacts, *, days: float) -> Rebuilt:
    """Put back what is kept and not on record, and keep what is on record and not kept.

    Args:
        artifacts: What keeps the results, and the notes beside them.
        days: How long the record of a job is kept; what is older is deleted.

    Returns:
        How much.
    """
    store, kept = artifacts.usage.store, KeptRecords(artifacts.notes)
    names = kept.names()
    n_jobs = 0
    for record in _lost(store, kept, names, days=days):
        if _put_back(artifacts, record):
            n_jobs += 1
            if kept.read(record.id, names[record.id]) is None:
                _delete(store, record.id)  # its note went in the meantime, as it was deleted
    pins = KeptPins(artifacts.notes, Catalogue(store))
    found = pins.all()
    n_pins = sum(_put_pin_back(store, pin) for pin in found)
    n_kept = sum(_keep(store, kept, id_) for id_ in _not_kept(store, set(names)))
    return Rebuilt(n_jobs, n_pins, n_kept + _keep_pins(pins, found))


def _lost(
    store: JobStore, kept: KeptRecords, names: dict[str, list[str]], *, days: float
) -> Iterator[JobRecord]:
    """Kept records that are not in the store; those that would be forgotten by now are deleted."""
    now_ms, ids = store.now_ms(), sorted(names)
    for start in range(0, len(ids), BATCH):
        batch = ids[start : start + BATCH]
        for job_id in batch:
            if is_past(job_id, now_ms=now_ms, days=days) and not store.has(job_id):
                kept.drop(names[job_id])
        there = {record.id for record, _ in store.states(batch)}
        for job_id in (id_ for id_ in batch if id_ not in there):
            if record := kept.read(job_id, names[job_id]):
                yield record


def _put_back(artifacts: TrackedArtifacts, record: JobRecord) -> bool:
    store, result = artifacts.usage.store, record.json_field("result")
    if not artifacts.store.exists(result["digest"]):
        artifacts.usage.note_gone(result["digest"])
    newest, others = _names_of(store, record)
    keys = [
        store.key("job", record.id), store.key("jobs"), store.key("events", record.id),
        store.key("names", record.id), store.key("result_owners", result["digest"]),
        *newest, *others,
    ]  # fmt: skip
    event = event_text("status", record.id, JobStatus.SUCCEEDED, record.attempt)
    fields = [part for pair in record.fields.items() if pair[0] != "id" for part in pair]
    given: list[str | int] = [
        record.id, event, record.fields["finished_at"], record.owner, len(newest),
    ]  # fmt: skip
    done = run_script(store.redis, "rebuild_job", keys=keys, args=[*given, *fields])
    return bool(done)


def _delete(store: JobStore, job_id: str) -> None:
    with suppress(JobMissing):
        store.delete(job_id)


def _names_of(store: JobStore, record: JobRecord) -> tuple[list[str], list[str]]:
    """The keys by which a job is found that has succeeded: as its newest, and among others."""
    newest = [store.key("cache", record.fields["request_digest"])]
    if record.kind is not JobKind.CALIBRATION:
        return newest, []
    if digest := record.fields.get("statistics_digest"):
        newest.append(store.key("statistics", digest))
    return newest, [store.key("inputs", key) for key in input_keys(record)]


def _put_pin_back(store: JobStore, pin: KeptPin) -> bool:
    if not pin.owner:
        for digest in {entry.digest for entry in pin.history}:
            ResultOwners(store).add(digest, ALL)
    entries = [entry.model_dump_json() for entry in pin.history]
    catalogue, which = Catalogue(store), (pin.name, pin.tag, pin.owner)
    keys = [catalogue.pin_key(*which), catalogue.list_key]
    args = [among_all(*which), *entries]
    return bool(run_script(store.redis, "rebuild_pin", keys=keys, args=args))


def _not_kept(store: JobStore, known: set[str]) -> Iterator[str]:
    """Jobs on record that have succeeded and of which there is no note."""
    ids = store.ids_before(store.now_ms() + 1, limit=MOST_JOBS)
    for record, _ in store.states(id_ for id_ in ids if id_ not in known):
        if record.status is JobStatus.SUCCEEDED:
            yield record.id


def _keep(store: JobStore, kept: KeptRecords, job_id: str) -> bool:
    try:
        record = store.get(job_id)
        kept.put(record, {name: record.fields[name] for name in OF_ITS_END})
    except JobMissing:
        return False
    if not store.has(job_id):
        kept.forget(job_id)  # it was deleted in the meantime
    return True


def _keep_pins(pins: KeptPins, found: list[KeptPin]) -> int:
    """Keep the pins of which there is no note, or an older one."""
    known = {(p.owner, p.name, p.tag): p.history[0].pinned_at_ms for p in found}
    n_kept = 0
    for owner, name, tag in pins.catalogue.all_pins():
        history = pins.catalogue.pinned(name, tag, owner=owner)
        if history and history[0].pinned_at_ms != known.get((owner, name, tag)):
            pins.keep(name, tag, owner=owner)
            n_kept += 1
    return n_kept
