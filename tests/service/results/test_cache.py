"""Eviction as clients see it, and the figures of the cache."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from fimlora_jobs.results.eviction import Limits
from fimlora_jobs.results.local import LocalArtifacts
from fimlora_jobs.results.store import describe
from fimlora_jobs.results.tracked import TrackedArtifacts
from fimlora_jobs.results.usage import ResultUsage
from fimlora_service.results.eviction import Evicted, evict
from support.results import make_result, make_statistics

EVERYTHING = Limits(max_age_ms=-1, rest_ms=0)


@pytest.fixture
def artifacts(http, store, data_dir):
    """The app's results."""
    return TrackedArtifacts(LocalArtifacts(data_dir / "artifacts"), ResultUsage(store))


@pytest.fixture
def finish(store, data_dir):
    """Play a worker whose result depends on the seed."""

    def run(job_id, *, seed=0):
        made = make_result(data_dir, statistics=make_statistics(seed=seed))
        store.start(job_id, 1, worker="test")
        store.succeed(job_id, 1, made)
        record = store.get(job_id)
        store.remember_result(record.fields["request_digest"], job_id)
        store.remember_statistics(record.fields["statistics_digest"], job_id)
        return made["digest"]

    return run


def test_an_evicted_result_is_gone_everywhere(http, job_id, finish, artifacts, body):
    """410 wherever it was answered, and the same request is calibrated anew."""
    digest = finish(job_id)
    assert http.get(f"/jobs/{job_id}/result").status_code == 200

    assert evict(artifacts, EVERYTHING).entries == 1

    for answer in (
        http.get(f"/jobs/{job_id}/result"),
        http.get(f"/jobs/{job_id}/artifacts"),
        http.get(f"/jobs/{job_id}/artifacts/rank_map.json"),
        http.post(f"/jobs/{job_id}/allocate", json={"budget": 4}),
        http.get(f"/rank-patterns/{digest}"),
        http.put("/rank-patterns/a/b", json={"digest": digest}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (410, "result_expired")
    again = http.post("/calibrate", json=body)
    assert (again.status_code, again.json()["id"] == job_id) == (202, False)
    assert again.json()["statistics_from"] is None


def test_a_result_committed_again_is_there_again(http, job_id, finish, artifacts, data_dir):
    """Equal content has one address: every job that had it has it back."""
    digest = finish(job_id)
    folder = data_dir / "artifacts" / digest.replace(":", "-")
    copy = data_dir / "tmp" / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    evict(artifacts, EVERYTHING)

    assert artifacts.commit(copy, describe(copy)) == digest

    assert http.get(f"/jobs/{job_id}/artifacts/rank_map.json").status_code == 200
    assert http.get(f"/rank-patterns/{digest}").status_code == 200


def test_what_is_needed_is_not_evicted(http, job_id, finish, artifacts, body):
    """A pin keeps its result, and an open job the statistics it plans from."""
    planned_from = finish(job_id)
    second = http.post("/calibrate", json=body | {"force": True}).json()["id"]
    pinned = finish(second, seed=1)
    third = http.post("/calibrate", json=body | {"force": True}).json()["id"]
    loose = finish(third, seed=2)
    assert http.put("/rank-patterns/a/b", json={"digest": pinned}).status_code == 201
    http.post("/calibrate", json=body | {"budget": 9})  # remembered: the third's statistics

    evict(artifacts, EVERYTHING)

    left = {result.digest for result in artifacts.list()}
    assert left == {pinned, loose}
    assert planned_from not in left


def test_what_was_just_used_is_not_evicted(job_id, finish, artifacts, http):
    """Who has read something has a while to say that it is needed."""
    finish(job_id)
    http.get(f"/jobs/{job_id}/artifacts/rank_map.json")

    assert evict(artifacts, Limits(max_bytes=1, rest_ms=60_000)) == Evicted()
    assert evict(artifacts, Limits()) == Evicted()
    assert evict(artifacts, Limits(max_bytes=1)).entries == 1


def test_readers_and_evictors_never_meet(http, job_id, finish, artifacts):
    """While results are evicted, a reader gets a whole file or 410, nothing else."""
    finish(job_id)
    url = f"/jobs/{job_id}/artifacts/statistics.safetensors"
    size = len(http.get(url).content)

    with ThreadPoolExecutor(4) as pool:
        reads = [pool.submit(http.get, url) for _ in range(40)]
        gone = pool.submit(evict, artifacts, EVERYTHING)
        answers = [read.result() for read in reads]

    assert {a.status_code for a in answers} <= {200, 410}
    assert all(len(a.content) == size for a in answers if a.status_code == 200)
    assert gone.result().entries + sum(1 for _ in artifacts.list()) == 1


def test_only_one_process_evicts(job_id, finish, artifacts, store):
    """The others leave it to that one."""
    finish(job_id)
    lock = store.lock("eviction", ttl_s=60)
    assert lock.acquire()

    assert evict(artifacts, EVERYTHING) == Evicted()
    lock.release()
    assert evict(artifacts, EVERYTHING).entries == 1


def test_the_figures_add_up(http, job_id, finish, artifacts, body):
    """Results with their size, what spared a calibration, what is pinned and what went."""
    http.post("/calibrate", json=body)
    digest = finish(job_id)
    http.post("/calibrate", json=body)
    http.post("/calibrate", json=body | {"budget": 9})
    http.put("/rank-patterns/a/b", json={"digest": digest})

    figures = http.get("/cache").json()

    [kept] = artifacts.list()
    assert figures["results"] == {"entries": 1, "bytes": kept.size}
    assert figures["statistics"]["bytes"] == kept.sizes["statistics.safetensors"]
    assert (figures["hits"], figures["replanned"], figures["misses"]) == (2, 1, 1)
    assert figures["pinned"] == 1
    assert figures["limits"] == {"max_bytes": None, "max_age_days": None}
    assert http.post("/cache/evict").json() == {"object": "eviction", "entries": 0, "bytes": 0}
