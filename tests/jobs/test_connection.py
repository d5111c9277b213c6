"""A store that is away or takes no writes: what says so, and who waits for it."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError, RedisError, ResponseError

from fimlora_jobs.connection import (
    Patience,
    impatient_redis,
    is_away,
    patient_redis,
    why_away,
)
from fimlora_jobs.queue import RqTransport
from fimlora_jobs.store import JobStore
from support.refusing import ProductionServer, running_production_server


@pytest.fixture(scope="module")
def server() -> Iterator[ProductionServer]:
    with running_production_server() as running:
        yield running


@pytest.fixture
def admin(server: ProductionServer) -> Iterator[Redis]:
    """A client that puts everything right at the end."""
    with Redis.from_url(server.url) as redis:
        yield redis
        server.free_disk()
        redis.execute_command("REPLICAOF", "NO", "ONE")
        redis.config_set("maxmemory", "0")
        redis.config_set("min-replicas-to-write", "0")


def out_of_memory(server: ProductionServer, admin: Redis) -> None:
    admin.config_set("maxmemory", "1mb")


def disk_full(server: ProductionServer, admin: Redis) -> None:
    server.fill_disk()


def without_replicas(server: ProductionServer, admin: Redis) -> None:
    admin.config_set("min-replicas-to-write", "1")


def read_only(server: ProductionServer, admin: Redis) -> None:
    admin.execute_command("REPLICAOF", "127.0.0.1", "1")


CAUSES = {
    "OOM": out_of_memory,
    "MISCONF": disk_full,
    "NOREPLICAS": without_replicas,
    "READONLY": read_only,
}


def create(redis: Redis) -> None:
    store = JobStore(redis)
    store.create(store.new_id(), request={}, resolved={}, digest="sha256:1")


def enqueue(redis: Redis) -> None:
    RqTransport(redis).enqueue("job_1", 1)


def pipeline(redis: Redis) -> None:
    redis.pipeline(transaction=False).set("caused error: a", 1).execute()


def transaction(redis: Redis) -> None:
    redis.pipeline(transaction=True).set("a", 1).set("b", 1).execute()


def lock(redis: Redis) -> None:
    JobStore(redis).lock("a", ttl_s=1).acquire()


@pytest.mark.parametrize("word", CAUSES)
def test_refused_writes_say_that_the_store_is_away(server, admin, word):
    """However the write was sent; the words name the cause and nothing that was sent."""
    CAUSES[word](server, admin)
    client = impatient_redis(server.url)
    found = {}
    for write in (create, enqueue, pipeline, transaction, lock):
        with pytest.raises(RedisError) as refused:
            write(client)
        found[write.__name__] = is_away(refused.value), why_away(refused.value)

    assert set(found.values()) == {(True, f"refuses writes: {word}")}
    assert client.dbsize() >= 0  # it is read all the same


def test_a_server_that_is_not_there_is_away():
    """Connections that are refused, and sockets that do not exist."""
    for url in ("unix:///tmp/fimlora-no-such-socket", "redis://127.0.0.1:1/0"):
        with pytest.raises(RedisError) as refused:
            impatient_redis(url).ping()
        assert is_away(refused.value)
        assert why_away(refused.value).startswith("does not answer")


@pytest.mark.parametrize(
    "error",
    [
        ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"),
        ResponseError("unknown command 'OOM'"),
        ResponseError(
            "Command # 1 (SET OOM caused error: OOM) of pipeline caused error: ERR x"
        ),
        AuthenticationError("invalid username-password pair or user is disabled."),
        ValueError("MISCONF"),
    ],
)
def test_other_errors_do_not(error):
    """Waiting would mend none of them."""
    assert not is_away(error)


@pytest.mark.parametrize("word", CAUSES)
def test_a_patient_client_waits_until_writes_are_taken(server, admin, word):
    """It goes on as if nothing had been; meanwhile nothing was written."""
    CAUSES[word](server, admin)
    done = threading.Event()

    def write_all() -> None:
        client = patient_redis(server.url)
        for write in (create, transaction, enqueue):
            write(client)
        done.set()

    before = admin.dbsize()
    thread = threading.Thread(target=write_all, daemon=True)
    thread.start()
    waited = not done.wait(1.0)
    meanwhile = admin.dbsize()
    server.free_disk()
    admin.execute_command("REPLICAOF", "NO", "ONE")
    admin.config_set("maxmemory", "0")
    admin.config_set("min-replicas-to-write", "0")

    assert done.wait(20)
    assert waited
    assert meanwhile <= before


def test_patience_ends_when_it_is_told_to(server, admin):
    """A worker that is to leave does not wait for a store that may never come back."""
    out_of_memory(server, admin)
    patience = Patience()
    client = patient_redis(server.url, patience=patience)
    threading.Timer(0.2, lambda: patience.end(in_s=0.1)).start()

    with pytest.raises(RedisError) as refused:
        client.set("a", 1)

    assert is_away(refused.value)


def test_a_patient_client_does_not_wait_for_what_stays_wrong(server, admin):
    """A wrong password is told at once, as is a wrong kind of value."""
    admin.set("text", "x")
    url = server.url.replace("unix://", "unix://nobody:wrong@")
    attempts: list[Callable[[], object]] = [
        lambda: patient_redis(server.url).lpush("text", 1),
        lambda: patient_redis(url).ping(),
    ]
    began = time.monotonic()
    for attempt in attempts:
        with pytest.raises(RedisError) as refused:
            attempt()
        assert not is_away(refused.value)

    assert time.monotonic() - began < 10
