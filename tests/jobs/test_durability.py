"""What is told to be on disk is there when the power is cut, under the flags of production."""

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError

from fimlora_jobs.connection import impatient_redis, is_away
from fimlora_jobs.durability import (
    PROMISED,
    WRITTEN,
    Durability,
    NotOnDisk,
    find_policy,
    owe,
    owing,
)
from fimlora_jobs.store import JobStore
from support.powercut import PoweredFolder, build_library
from support.refusing import ProductionServer, running_production_server, short_folder

# Of a server that lets nobody ask how it syncs, and where its files are.
MUTE = ("--rename-command", "CONFIG", "")
# In a process of its own, as the files are synced by whoever asks.
WRITE_AND_SETTLE = """
import sys
from fimlora_jobs.connection import impatient_redis
from fimlora_jobs.durability import Durability
from redis.exceptions import ResponseError
from contextlib import suppress
redis = impatient_redis(sys.argv[1])
durability = Durability(redis, key="probe")
for name in ("first", "second", "third"):
    redis.set(name, 1)
    durability.settled().result(10)
print(durability.promise)
"""


@contextmanager
def powered_server(is_far: bool = False) -> Iterator[tuple[ProductionServer, PoweredFolder]]:
    """A server whose power can be cut."""
    with short_folder() as folder:
        (folder / "data").mkdir()
        powered = PoweredFolder(folder / "data", folder / "store", build_library(folder))
        server = ProductionServer(folder, env=powered.env, is_far=is_far)
        try:
            yield server, powered
        finally:
            server.kill()


def after_a_cut(server: ProductionServer, powered: PoweredFolder) -> set[bytes]:
    """Names of the keys that are there when the power is back."""
    server.kill()
    powered.cut()
    server.start()
    with Redis.from_url(server.url) as redis:
        return set(redis.keys())


def test_a_write_that_the_server_says_is_synced_is_lost():
    """WAITAOF's answer is not true within a second of the last sync; so the harness can tell.

    On a busy machine that second may be over before the power is cut: then it is tried again.
    """
    left = next(
        (left for left in map(confirmed_and_cut, range(8)) if b"second" not in left), None
    )

    assert left is not None


def confirmed_and_cut(_: int) -> set[bytes]:
    """What is left of two writes that WAITAOF has confirmed."""
    with powered_server() as (server, powered), Redis.from_url(server.url) as redis:
        redis.set("first", 1)
        answers = [redis.waitaof(1, 0, 5000)]
        redis.set("second", 1)
        answers.append(redis.waitaof(1, 0, 5000))

        left = after_a_cut(server, powered)

    assert answers == [[1, 0], [1, 0]]
    return left


@pytest.mark.parametrize("is_far", [False, True], ids=["near", "far"])
def test_what_is_settled_survives_a_cut(is_far):
    """With the server's files in reach, and without; what was not settled is lost."""
    with powered_server(is_far) as (server, powered):
        told = subprocess.run(
            [sys.executable, "-c", WRITE_AND_SETTLE, server.url],
            env=powered.env, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip

        left = after_a_cut(server, powered)

    assert told.strip() == PROMISED
    assert {b"first", b"second", b"third"} <= left


@pytest.mark.parametrize(
    ("more", "promise"),
    [
        (("--appendonly", "no"), "not promised: the server keeps no append-only file"),
        (("--appendfsync", "no"), "not promised: the server never syncs"),
        (("--appendfsync", "always"), PROMISED),
        ((), PROMISED),
        (MUTE, "not promised: the server does not say how it syncs"),
        ((*MUTE, "--appendonly", "no"), "not promised: the server keeps no append-only file"),
    ],
)
def test_what_is_promised_is_said(more, promise):
    """And nobody waits for what is not."""
    with running_production_server(*more) as server, durability_of(server) as durability:
        durability.settled().result(10)

        assert durability.promise.startswith(promise)
        assert durability.covers(JobStore(Redis.from_url(server.url)).now_ms() - 60_000)
        assert not durability.covers(WRITTEN)


def test_the_servers_folder_may_be_mounted_elsewhere(tmp_path):
    """Where its own path says nothing here; a folder that is not the server's is not taken for it."""
    other = tmp_path / "appendonlydir"
    other.mkdir()
    (other / "appendonly.aof.1.incr.aof").write_bytes(b"")
    with (
        running_production_server(*MUTE) as server,
        closing(impatient_redis(server.url)) as redis,
    ):
        found = [
            find_policy(redis, key="probe", folder=folder)
            for folder in (None, tmp_path, server.data)
        ]

    assert [policy.files is not None for policy in found] == [False, False, True]
    assert [bool(policy.why_not) for policy in found] == [True, True, False]


def test_a_clock_that_went_back_is_believed(monkeypatch):
    """What is written from then on has times that were on disk already, and is not."""
    with (
        running_production_server("--appendfsync", "always") as server,
        closing(impatient_redis(server.url)) as redis,
        closing(Durability(redis, key="probe")) as durability,
    ):
        seconds, _ = redis.time()
        covered = []
        for look in (lambda: durability.settled().result(10), durability.probe):
            monkeypatch.setattr(redis, "time", lambda: (seconds + 3600, 0))
            durability.settled().result(10)
            covered.append(durability.covers((seconds + 1800) * 1000))
            monkeypatch.setattr(redis, "time", lambda: (seconds, 0))
            look()
            covered.append(durability.covers((seconds + 1800) * 1000))

    assert covered == [True, False] * 2


@contextmanager
def durability_of(server: ProductionServer, *, wait_s: float = 5.0) -> Iterator[Durability]:
    with (
        closing(impatient_redis(server.url)) as redis,
        closing(Durability(redis, key="probe", wait_s=wait_s)) as durability,
    ):
        yield durability


@pytest.mark.parametrize("is_far", [False, True], ids=["near", "far"])
def test_what_a_full_disk_does_not_take_is_not_told(is_far):
    """The server has confirmed it; it is refused all the same, until there is space again."""
    with (
        running_production_server(is_far=is_far) as server,
        durability_of(server, wait_s=0.5) as durability,
        Redis.from_url(server.url) as redis,
    ):
        durability.settled().result(10)
        server.fill_disk()
        with pytest.raises(NotOnDisk) as refused:
            durability.settled().result(10)
        with pytest.raises(RedisError) as probed:
            durability.probe()
        server.free_disk()
        deadline = time.monotonic() + 10
        while redis.info("persistence")["aof_last_write_status"] != "ok":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        durability.settled().result(10)

    assert is_away(refused.value)
    assert is_away(probed.value)


def test_many_are_served_by_a_few_rounds():
    """Two hundred who ask at once are not served one after the other."""
    with running_production_server(is_far=True) as server, durability_of(server) as durability:
        durability.settled().result(10)
        asked: set[Future[None]] = {durability.settled() for _ in range(200)}
        for future in asked:
            future.result(10)

    assert len(asked) < 50


def test_only_what_is_told_is_owed():
    """Outside of a request nothing is; inside, the latest counts."""
    owe()
    with owing() as nothing:
        pass
    with owing() as debt:
        owe(5)
        owe(3)

    assert (nothing.until_ms, debt.until_ms) == (0, 5)


def test_the_library_of_the_cuts_keeps_only_what_is_synced(tmp_path: Path):
    """Content, names and renames alike: the ground the other tests stand on."""
    root = tmp_path / "root"
    (root / "old").mkdir(parents=True)
    (root / "old" / "kept").write_text("before")
    powered = PoweredFolder(root, tmp_path / "store", build_library(tmp_path))
    code = """
import os, sys
root = sys.argv[1]
def put(name, text, synced):
    with open(f"{root}/{name}", "w") as file:
        file.write(text)
        file.flush()
        if synced:
            os.fsync(file.fileno())
put("synced", "a", True)
put("unsynced", "b", False)
put("old/kept", "after", False)
put("moved", "c", True)
os.rename(f"{root}/moved", f"{root}/elsewhere")
os.mkdir(f"{root}/new")
put("new/inside", "d", True)
put("synced", "a, and more", False)
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code, str(root)], env=powered.env, check=False)
    powered.cut()

    left = {str(p.relative_to(root)): p.read_text() for p in root.rglob("*") if p.is_file()}
    assert left == {"synced": "a", "old/kept": "before", "moved": "c", "new/inside": "d"}


def test_what_is_settled_survives_a_cut_while_the_file_is_made_anew():
    """The server changes to another file in the middle, and the old one's end is kept as well."""
    code = WRITE_AND_SETTLE.replace(
        "    redis.set(name, 1)\n",
        "    redis.set(name, 1)\n    with suppress(ResponseError):\n        redis.bgrewriteaof()\n",
    )
    with powered_server() as (server, powered):
        subprocess.run(
            [sys.executable, "-c", code, server.url],
            env=powered.env, capture_output=True, text=True, check=True,
        )  # fmt: skip

        left = after_a_cut(server, powered)

    assert {b"first", b"second", b"third"} <= left
