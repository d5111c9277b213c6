"""Every key in Redis is in the table of the page, and goes with what it names."""

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from redis import Redis

from fimlora_client import Client, JobFailed
from fimlora_contract.jobs import JobError, JobKind
from fimlora_jobs.deduplication import FIGURES
from fimlora_jobs.outbox import Outbox
from fimlora_jobs.reader import JobMissing
from fimlora_jobs.results.eviction import Limits
from fimlora_jobs.results.object_store import open_artifacts
from fimlora_jobs.results.tracked import TrackedArtifacts
from fimlora_jobs.results.usage import ResultUsage
from fimlora_jobs.retention import forget_old_jobs
from fimlora_jobs.runs import Runs
from fimlora_jobs.store import BESIDE, COUNTERS, JobStore
from fimlora_service.results.eviction import evict
from support.jobs import LABELLED

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "redis-keys.md"
ROW = re.compile(
    r"^\| `(?P<key>[^`]+)` \| (?P<type>\w+) \| .* \| (?P<goes>.*) \|$", re.MULTILINE
)
SMALL = {"calibration": {"n_batches": 1, "batch_size": 2}}


class Row:
    """A line of the table."""

    def __init__(self, match: re.Match[str]) -> None:
        self.type, self.goes = match["type"], match["goes"]
        self.is_one = not re.search(r"[A-Z]{2}", match["key"])
        self.pattern = re.compile(re.sub(r"[A-Z]{2,}", ".+", match["key"]))


def table() -> list[Row]:
    return [Row(match) for match in ROW.finditer(PAGE.read_text())]


def rows_of(redis: Redis) -> dict[str, Row]:
    """The line of each key; the most exact one, if several fit."""
    keys = sorted(key.decode() for key in redis.scan_iter(count=1000))
    rows = {key: [row for row in table() if row.pattern.fullmatch(key)] for key in keys}
    assert not [key for key in keys if not rows[key]], "not in docs/redis-keys.md"
    return {
        key: max(found, key=lambda row: (row.is_one, len(row.pattern.pattern)))
        for key, found in rows.items()
    }


def play_runs(runs: Runs) -> None:
    """All that workers keep of an evaluation while they train."""
    runs.prepare({"arm": {}}, on="cpu")
    runs.claim(["a", "b"], holder="w")
    runs.claim(["b"], holder="w")
    with suppress(JobMissing):
        runs.keep("a", {"score": 1})
    runs.note("b", 1)
    runs.note_failed_hand()


def run_all_kinds(client: Client, store: JobStore, run_queue: Callable[[], None]) -> None:
    """Jobs of every kind and end, with all that requests may leave behind."""
    data = client.datasets.upload(LABELLED)
    fields = {"base_model": "local:tiny", "dataset": data.id, **SMALL}
    first = client.calibrate(**fields, budget=4, idempotency_key="k", priority="high")
    first.wait()
    client.rank_patterns.pin("mine", "prod", job_id=first.id)
    client.calibrate(**fields, budget=5, deadline_s=600).wait()  # from the same statistics
    evaluation = store.new_id()
    store.create(evaluation, kind=JobKind.EVALUATION, request={}, resolved={}, digest="e")
    play_runs(Runs(store, evaluation))
    store.request_cancel(evaluation)
    play_runs(Runs(store, store.new_id()))  # of a job that is gone
    failed = client.calibrate(**fields, budget=6)
    store.fail(failed.id, 1, JobError(code="timeout", detail="too late"))
    with pytest.raises(JobFailed):
        failed.wait()
    canceled = client.calibrate(**fields, budget=7)
    Outbox(store).add(canceled.id, "http://127.0.0.1:9/hook")
    store.note_missing(canceled.id, 1, missing=True)
    canceled.cancel()
    run_queue()


def test_no_key_outlives_what_it_names(
    client: Client, store: JobStore, data_dir: Path, redis_client: Redis, run_queue
):
    """Of forgotten jobs nothing is left, of evicted results what is bounded."""
    run_all_kinds(client, store, run_queue)
    for name, row in rows_of(redis_client).items():
        # One that somebody at work here has just removed has no type.
        assert redis_client.type(name).decode() in {row.type, "none"}, name
        if row.goes.startswith("after "):
            assert redis_client.ttl(name) != -1, name

    n_jobs = len(client.jobs.list(limit=100).data)
    assert forget_old_jobs(store, days=-1) == n_jobs >= 5

    left = rows_of(redis_client)
    artifacts = TrackedArtifacts(open_artifacts("", data_dir=data_dir), ResultUsage(store))
    assert not [key for key, row in left.items() if row.goes.startswith("with the job")]
    assert set(artifacts.usage.last_uses()) == {result.digest for result in artifacts.list()}

    redis_client.delete("fimlora:pin:mine:prod")
    assert evict(artifacts, Limits(max_bytes=1)).entries > 0
    assert artifacts.usage.last_uses() == {}


def test_every_key_that_the_code_makes_is_in_the_table():
    """Whatever a test has not happened to write."""
    sources = [path for room in ("service", "worker") for path in (ROOT / room).rglob("*.py")]
    found = {
        name
        for path in sources
        for name in re.findall(r"\bkey\(\s*\"([a-z_]+)\"", path.read_text())
    }
    named = {match["key"].split(":")[1] for match in ROW.finditer(PAGE.read_text())}

    assert len(found) > 25
    assert found | {*BESIDE, COUNTERS, FIGURES} <= named


def test_nobody_leaves_keys_by_asking(client: Client, http, redis_client: Redis):
    """Whatever a stranger makes up: digests, jobs, pins, inputs."""
    before = set(redis_client.keys("*"))
    for n in range(20):
        digest = f"sha256:{n:064x}"
        for path in (
            f"/rank-patterns/{digest}", f"/rank-patterns/n{n}/t", f"/jobs/job_{n:023x}",
            f"/rank-patterns?model=m{n}&dataset=d", f"/jobs/job_{n:023x}/webhooks",
            f"/jobs/job_{n:023x}/artifacts/x", f"/jobs/job_{n:023x}/events",
        ):  # fmt: skip
            answer = http.get(path, headers={"Accept": "application/json"})
            assert 400 <= answer.status_code < 500, path
        http.delete(f"/jobs/job_{n:023x}")
        http.put(f"/rank-patterns/n{n}/t", json={"digest": digest})

    new = set(redis_client.keys("*")) - before
    assert not {key for key in new if not key.startswith((b"fimlora:lock:", b"fimlora:looks"))}
