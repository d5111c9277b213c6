"""A store of jobs that lost its data has its records and pins again, each where it belongs."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from redis import Redis

from fimlora_contract.jobs import Job, JobStatus
from fimlora_jobs.catalogue import Catalogue, lookup_key
from fimlora_jobs.keys import KeyStore
from fimlora_jobs.reader import JobMissing
from fimlora_jobs.record import new_job_id
from fimlora_jobs.result_owners import ResultOwners
from fimlora_jobs.results.kept_pins import KeptPins
from fimlora_jobs.results.kept_records import ROOM, KeptRecords
from fimlora_jobs.results.object_store import open_artifacts
from fimlora_jobs.results.rebuilding import Rebuilding, rebuild
from fimlora_jobs.results.store import describe
from fimlora_jobs.results.tracked import TrackedArtifacts
from fimlora_jobs.results.usage import ResultUsage
from fimlora_jobs.retention import DAY_MS, forget_old_jobs
from fimlora_jobs.store import JobStore
from support.results import make_result

DAYS = 90.0
DIGEST, STATISTICS = "sha256:" + "1" * 64, "sha256:" + "2" * 64
REQUEST = {
    "base_model": {"source": "local", "name": "minilm"},
    "dataset": {"source": "local", "name": "rows"},
    "budget": {"rank": 8},
    "metadata": {"team": "search"},
}
RESOLVED = {"base_model": {"digest": "sha256:m"}, "dataset": {"digest": "sha256:d"}}
Finish = Callable[..., str]


@pytest.fixture
def store(redis_client: Redis) -> JobStore:
    return JobStore(redis_client)


@pytest.fixture(params=["folder", "s3"])
def artifacts(
    request: pytest.FixtureRequest, store: JobStore, tmp_path: Path
) -> TrackedArtifacts:
    """What keeps results: a folder or a bucket."""
    url = request.getfixturevalue("s3").url if request.param == "s3" else ""
    return TrackedArtifacts(open_artifacts(url, data_dir=tmp_path / "data"), ResultUsage(store))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A result on disk and on a record."""
    data_dir = tmp_path_factory.mktemp("made")
    result = make_result(data_dir)
    [folder] = (data_dir / "artifacts").iterdir()
    return folder, result


@pytest.fixture
def finish(store: JobStore, artifacts: TrackedArtifacts, made, tmp_path) -> Finish:
    """Play a worker that finishes a job; answers its id."""

    def run(*, owner: str = "", digest: str = DIGEST, keep: bool = True, days_ago=0.0) -> str:
        folder, result = made
        copy = tmp_path / uuid4().hex
        copy.mkdir()
        for file in folder.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        artifacts.commit(copy, describe(copy))
        id_ = new_job_id(store.now_ms() - int(days_ago * DAY_MS))
        store.create(
            id_, request=REQUEST, resolved=RESOLVED, digest=digest, owner=owner,
            tenant=owner, statistics_digest=STATISTICS,
        )  # fmt: skip
        store.start(id_, 1, worker="w")
        finished_ms = store.now_ms() if keep else None
        if finished_ms is not None:
            KeptRecords(artifacts.notes).keep(store.get(id_), result, finished_ms=finished_ms)
        store.succeed(id_, 1, result, finished_ms=finished_ms)
        store.remember_result(digest, id_)
        store.remember_statistics(STATISTICS, id_)
        Catalogue(store).file(store.get(id_))
        return id_

    return run


def seen(store: JobStore, job_id: str) -> Job:
    return store.shown(job_id).to_job()


def lose(store: JobStore) -> None:
    store.redis.flushall()


class TestRecords:
    def test_what_clients_saw_is_what_they_see(self, store, artifacts, finish):
        """Every field of the job, its place among all, and the end of its history."""
        ids = [finish(), finish()]
        before = [seen(store, id_) for id_ in ids]
        lose(store)

        assert rebuild(artifacts, days=DAYS).jobs == 2

        assert [seen(store, id_) for id_ in ids] == before
        assert [r.id for r in store.page(limit=10)] == sorted(ids, reverse=True)
        [event] = store.events(ids[0])
        assert (event.status, event.at) == (JobStatus.SUCCEEDED, before[0].finished_at)

    def test_it_is_found_as_before(self, store, artifacts, finish):
        """By an equal request, by its statistics, and by its inputs: the newest, always."""
        old, new = sorted([finish(), finish()])
        lose(store)
        rebuild(artifacts, days=DAYS)

        assert store.find_result(DIGEST).id == new
        assert store.find_statistics(STATISTICS).id == new
        assert Catalogue(store).newest(lookup_key("sha256:m", "sha256:d", None)).id == new
        store.delete(new)
        assert store.find_result(DIGEST) is None
        assert Catalogue(store).newest(lookup_key("sha256:m", "sha256:d", None)).id == old

    def test_doing_it_again_changes_nothing(self, store, artifacts, finish):
        """Two processes may do it at once."""
        finish()
        lose(store)

        assert rebuild(artifacts, days=DAYS) == (1, 0, 0)
        assert rebuild(artifacts, days=DAYS) == (0, 0, 0)

    def test_nothing_on_record_is_overwritten(self, store, artifacts, finish):
        """Neither a job that has gone on since, nor what names a newer one."""
        old = finish()
        lose(store)
        store.create(old, request=REQUEST, resolved=RESOLVED, digest=DIGEST)  # another's, say
        new = finish(keep=False)

        rebuild(artifacts, days=DAYS)

        assert store.status_of(old) is JobStatus.QUEUED
        assert store.find_result(DIGEST).id == new

    def test_tenants_have_their_own_and_no_more(self, store, artifacts, finish, made):
        """Job, list and result: what was one tenant's is not another's, nor everybody's."""
        theirs = finish(owner="a")
        digest = made[1]["digest"]
        lose(store)
        rebuild(artifacts, days=DAYS)

        assert store.owner_of(theirs) == "a"
        assert [r.id for r in store.page(limit=9, owner="a")] == [theirs]
        assert store.page(limit=9, owner="b") == []
        owners = ResultOwners(store)
        assert [owners.has(digest, whose) for whose in ("a", "b")] == [True, False]
        shared, own = (
            lookup_key("sha256:m", "sha256:d", None, tenant=tenant) for tenant in ("", "a")
        )
        assert Catalogue(store).newest(shared) is None
        assert Catalogue(store).newest(own).id == theirs

    def test_what_was_deleted_stays_so(self, store, artifacts, finish):
        """By its owner, or because it is old: also where that was while nobody looked."""
        deleted, old, young = finish(), finish(days_ago=91), finish()
        KeptRecords(artifacts.notes).forget(deleted)
        store.delete(deleted)
        lose(store)
        rebuild(artifacts, days=DAYS)

        assert [r.id for r in store.page(limit=10)] == [young]
        assert old not in KeptRecords(artifacts.notes).names()

    def test_forgetting_forgets_the_note(self, store, artifacts, finish):
        """Records that are deleted by age take their notes with them."""
        _, young = finish(days_ago=91), finish()
        kept = KeptRecords(artifacts.notes)

        assert forget_old_jobs(store, days=DAYS, forget_kept=kept.forget) == 1

        assert kept.names().keys() == {young}

    def test_an_attempt_that_came_too_late_leaves_what_another_has_kept(
        self, store, artifacts, finish
    ):
        """Each has a note of its own, and the last one counts."""
        job_id = finish()
        kept, record = KeptRecords(artifacts.notes), store.get(job_id)
        artifacts.notes.put(ROOM, f"{job_id}.2", artifacts.notes.read(ROOM, f"{job_id}.1"))
        kept.withdraw(job_id, 1)

        assert (
            kept.read(job_id, kept.names()[job_id]).fields["result"]
            == (record.fields["result"])
        )

    def test_a_result_that_is_gone_is_said_to_have_been(self, store, artifacts, finish, made):
        """Not that there never was one."""
        finish()
        artifacts.delete(made[1]["digest"])
        lose(store)
        rebuild(artifacts, days=DAYS)

        assert artifacts.usage.use(made[1]["digest"]) is False

    def test_what_is_on_record_and_not_kept_is_kept(self, store, artifacts, finish):
        """Jobs of a version before this one, once: from then on they are safe."""
        job_id = finish(keep=False)
        before = seen(store, job_id)

        assert rebuild(artifacts, days=DAYS) == (0, 0, 1)
        lose(store)
        rebuild(artifacts, days=DAYS)

        assert seen(store, job_id) == before

    def test_what_is_no_record_is_passed_over(self, store, artifacts, finish):
        """Torn, empty, of another job or half: the others come back all the same."""
        good, other = finish(), finish()
        note = json.loads(artifacts.notes.read(ROOM, f"{good}.1"))
        without = {k: v for k, v in note["fields"].items() if k not in ("result", "request")}
        result, request = (json.loads(note["fields"][name]) for name in ("result", "request"))
        contents = [
            b"", b"{", b"\xff\xfe", b"[1]", json.dumps(note).encode(),
            *(
                json.dumps({**note, "id": other, "fields": fields}).encode()
                for fields in (
                    {}, without, note["fields"] | {"status": "running"},
                    note["fields"] | {"request": "{}"}, note["fields"] | {"result": "[]"},
                    note["fields"] | {"finished_at": "1_000"}, note["fields"] | {"finished_at": "-5"},
                    note["fields"] | {"result": json.dumps(result | {"digest": "d" * 300})},
                    note["fields"] | {"request": json.dumps(request | {"metadata": {"a": "\ud800"}})},
                    note["fields"] | {"attempt": "x"}, note["fields"] | {"created_at": "9" * 40},
                )
            ),
        ]  # fmt: skip
        for content in contents:
            artifacts.notes.put(ROOM, f"{other}.1", content)
            lose(store)

            assert rebuild(artifacts, days=DAYS).jobs == 1, content
            with pytest.raises(JobMissing):
                store.get(other)


class TestPins:
    def test_a_pin_has_its_history_again(self, store, artifacts):
        """A tenant's own and one that all share, with what only the shared one lets others see."""
        catalogue = Catalogue(store)
        pins = KeptPins(artifacts.notes, catalogue)
        for owner, digest in (("", "sha256:1"), ("a", "sha256:2"), ("a", "sha256:3")):
            catalogue.pin("sst2", "prod", digest, owner=owner, by="key")
            pins.keep("sst2", "prod", owner=owner)
        before = {owner: catalogue.pinned("sst2", "prod", owner=owner) for owner in ("", "a")}
        lose(store)

        assert rebuild(artifacts, days=DAYS) == (0, 2, 0)

        for owner, history in before.items():
            assert catalogue.pinned("sst2", "prod", owner=owner) == history
            [listed] = catalogue.pins(owner=owner, limit=9)
            assert (listed.owner, listed.newest) == (owner, history[0])
        owners = ResultOwners(store)
        assert owners.has("sha256:1", "b")
        assert not owners.has("sha256:2", "b")
        assert rebuild(artifacts, days=DAYS) == (0, 0, 0)

    def test_the_newer_of_note_and_store_counts(self, store, artifacts):
        """A store from a backup has what was pinned since; a note never undoes a pin."""
        catalogue = Catalogue(store)
        pins = KeptPins(artifacts.notes, catalogue)
        catalogue.pin("sst2", "prod", "sha256:1")
        copy = store.redis.dump(catalogue.pin_key("sst2", "prod", ""))
        time.sleep(0.01)  # later by the clock of pins
        catalogue.pin("sst2", "prod", "sha256:2")
        pins.keep("sst2", "prod", owner="")
        store.redis.restore(catalogue.pin_key("sst2", "prod", ""), 0, copy, replace=True)

        rebuild(artifacts, days=DAYS)
        assert [e.digest for e in catalogue.pinned("sst2", "prod")] == ["sha256:2", "sha256:1"]

        catalogue.pin("sst2", "prod", "sha256:3")
        assert rebuild(artifacts, days=DAYS) == (0, 0, 1)
        assert catalogue.pinned("sst2", "prod")[0].digest == "sha256:3"
        [kept] = pins.all()
        assert [asdict(e)["digest"] for e in catalogue.pinned("sst2", "prod")] == [
            entry.digest for entry in kept.history
        ]


class TestLooking:
    def test_a_store_that_loses_its_data_while_watched_is_filled(
        self, store, artifacts, finish
    ):
        """Until then what is not found is said to be on its way."""
        job_id = finish()
        rebuilding = Rebuilding(artifacts, days=DAYS)
        assert rebuilding.is_due()
        rebuilding.look()
        assert not rebuilding.is_due()
        lose(store)
        assert rebuilding.is_due()

        rebuilding.look()

        assert not rebuilding.is_due()
        assert store.status_of(job_id) is JobStatus.SUCCEEDED

    def test_a_storage_that_is_away_is_tried_again(self, store, tmp_path):
        """The store is not taken for whole until all notes were seen."""
        local = open_artifacts("", data_dir=tmp_path)
        artifacts = TrackedArtifacts(local, ResultUsage(store))
        rebuilding = Rebuilding(artifacts, days=DAYS)
        (local.root / ROOM).symlink_to(local.root / ROOM)  # a loop: it cannot be read

        with pytest.raises(OSError, match="symbolic links"):
            rebuilding.look()

        assert rebuilding.is_due()
        assert rebuilding.tried.is_set()
        (local.root / ROOM).unlink()
        rebuilding.look()
        assert not rebuilding.is_due()

    def test_no_key_comes_from_a_file(self, store, artifacts):
        """Whoever can write files would let himself in."""
        name = store.key("api_key", "x")
        for room in ("records", "pins", "keys", "api_keys"):
            artifacts.notes.put(room, "x", json.dumps({"id": "x", "key": name}).encode())

        rebuild(artifacts, days=DAYS)

        assert not KeyStore(store).has_any()


def test_a_note_that_is_no_file_is_not_opened(tmp_path):
    """No link is followed, no pipe waited for, and nothing too large is read."""
    local = open_artifacts("", data_dir=tmp_path)
    room = local.root / ROOM
    room.mkdir()
    (tmp_path / "secret").write_text("{}")
    (room / "a.json").symlink_to(tmp_path / "secret")
    os.mkfifo(room / "b.json")
    (room / "c.json").mkdir()
    with (room / "d.json").open("wb") as file:
        file.truncate(65 << 20)

    assert [local.notes.read(ROOM, name) for name in "abcd"] == [None] * 4
