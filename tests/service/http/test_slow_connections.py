"""Clients that keep the real server waiting are let go, and its connections are bounded."""

import itertools
import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest

from support.raw_http import (
    Address,
    ask,
    ask_all,
    dial,
    drip,
    is_closed_while_sending,
    read_reply,
)
from support.service import ROWS, make_model
from support.service_process import running_service, wait_until
from support.valkey import running_valkey

pytestmark = pytest.mark.slow
DEADLINE_S = 1
N_CONNECTIONS = 20
N_WAITING = 5
HOST = b"Host: localhost\r\n"
HEALTH = b"GET /healthz HTTP/1.1\r\nConnection: close\r\n" + HOST + b"\r\n"
SLOWLY = (b"a" for _ in itertools.count())


def head_of(route: str, kind: str, *, length: str = "Content-Length: 9999") -> bytes:
    """The head of a request whose body does not follow at once."""
    lines = [f"{route} HTTP/1.1", "Host: localhost", f"Content-Type: {kind}", length, "", ""]
    return "\r\n".join(lines).encode()


class Service(NamedTuple):
    """A running service with tight limits."""

    client: httpx2.Client
    address: Address
    data_dir: Path

    def n_connections(self) -> int:
        """Connections that the process has open to clients."""
        port, listening = f":{self.address[1]:04X}", "0A"
        entries = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
        return sum(
            local.endswith(port) and state != listening and inode != "0"
            for _, local, _, state, _, _, _, _, _, inode, *_ in entries
        )

    def make_job(self) -> str:
        """A job that nobody works on."""
        body = {"dataset": {"source": "inline", "rows": ROWS}, "budget": 8}
        answer = self.client.post("/calibrate", json=body | {"base_model": "local:tiny"})
        return str(answer.raise_for_status().json()["id"])


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    data_dir = tmp_path_factory.mktemp("service")
    make_model(data_dir / "models" / "tiny")
    limits = {
        "FIMLORA_REQUEST_TIMEOUT_S": str(DEADLINE_S),
        "FIMLORA_MAX_CONNECTIONS": str(N_CONNECTIONS),
        "FIMLORA_MAX_WAITING_PER_CLIENT": str(N_WAITING),
    }
    with (
        running_valkey() as url,
        running_service(data_dir, url, **limits) as (client, _),
    ):
        client.headers["connection"] = "close"  # the short deadline ends what is kept alive
        yield Service(client, (client.base_url.host, client.base_url.port), data_dir)


@pytest.fixture(autouse=True)
def unharmed(service: Service) -> Iterator[None]:
    """After each test others are served, and no fault is logged."""
    mark = len((service.data_dir / "log").read_text())
    yield
    assert ask(service.address, HEALTH).status == 200
    log = (service.data_dir / "log").read_text()[mark:]
    assert "Traceback" not in log
    assert "request.failed" not in log


HEADS = {
    "request": head_of("POST /calibrate", "application/json"),
    "dataset": head_of("POST /datasets", "text/csv"),
    "adapter": head_of("POST /adapters", "application/x-tar"),
    "pin": head_of("PUT /rank-patterns/a/b", "application/json"),
}


class TestSlowHeads:
    @pytest.mark.parametrize(
        "first", [b"G", b"GET /healthz HTTP/1.1\r\n", b"GET /healthz HTTP/1.1\r\nX: "]
    )
    def test_a_head_that_drips_in_is_given_up(self, service, first):
        """However far it has come."""
        reply = drip(service.address, first, SLOWLY, every_s=0.2)

        assert reply.problem["code"] == "request_timeout"
        assert (reply.status, reply.headers["connection"]) == (408, "close")

    @pytest.mark.parametrize("first", [b"", b"GET /healthz HTTP/1.1\r\n"], ids=["no", "half"])
    def test_a_client_that_falls_silent_is_let_go(self, service, first):
        """Also one that has never said anything: it gets no answer to nothing."""
        reply = ask(service.address, first)

        assert reply.status == (408 if first else 0)
        assert reply.is_closed or reply.headers["connection"] == "close"

    def test_a_second_head_that_drips_in_is_given_up(self, service):
        """A connection that was good once is no licence."""
        with dial(service.address) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n")
            assert read_reply(connection).status == 200
            assert is_closed_while_sending(connection)


class TestSlowBodies:
    @pytest.mark.parametrize("kind", HEADS)
    def test_a_body_that_drips_in_is_given_up(self, service, kind):
        """Of every kind; nothing of it stays."""
        reply = drip(service.address, HEADS[kind], SLOWLY, every_s=0.2)

        assert reply.problem["code"] == "request_timeout"
        assert (reply.status, reply.headers["connection"]) == (408, "close")
        wait_until(lambda: not list((service.data_dir / "tmp").iterdir()))

    def test_chunks_that_drip_in_are_given_up(self, service):
        """A body without a length has no more time."""
        head = head_of("POST /datasets", "text/csv", length="Transfer-Encoding: chunked")
        chunks = (b"1\r\na\r\n" for _ in itertools.count())

        reply = drip(service.address, head, chunks, every_s=0.2)

        assert reply.problem["code"] == "request_timeout"

    def test_a_body_that_nobody_reads_has_an_end(self, service):
        """The answer is there already; what still drips in keeps no connection open."""
        with dial(service.address) as connection:
            connection.sendall(
                b"POST /nowhere HTTP/1.1\r\nContent-Length: 9999\r\n" + HOST + b"\r\n"
            )
            assert read_reply(connection).status == 404
            assert is_closed_while_sending(connection)

    def test_a_long_body_at_a_fair_pace_is_taken(self, service):
        """It takes longer than the deadline, with pieces that earn the time."""
        rows = b'{"text": "%s"}\n' % (b"a" * 2000)
        n_rows = 15
        with dial(service.address) as connection:
            length = f"Content-Length: {len(rows) * n_rows}"
            head = head_of("POST /datasets", "application/jsonl", length=length)
            connection.sendall(head)
            for _ in range(n_rows):
                connection.sendall(rows)
                time.sleep(0.1)
            reply = read_reply(connection)

        assert reply.status == 201
        assert json.loads(reply.body)["rows"] == n_rows


def test_a_client_that_does_not_read_is_let_go(service):
    """It asks for more than fits into all buffers, and takes none of it."""
    with dial(service.address) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        asked = b"GET /openapi.json HTTP/1.1\r\n" + HOST + b"\r\n"
        connection.sendall(asked * 100)
        wait_until(lambda: service.n_connections() == 1)
        wait_until(lambda: service.n_connections() == 0, seconds=20)


def test_a_client_that_reads_slowly_but_steadily_is_served(service):
    """For several times the deadline, through buffers that are full all the while."""
    asked, n_answers = b"GET /openapi.json HTTP/1.1\r\n" + HOST, 30
    whole = len(ask_all(service.address, asked + b"Connection: close\r\n\r\n"))
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 << 10)
        connection.settimeout(20)
        connection.connect(service.address)
        connection.sendall((asked + b"\r\n") * (n_answers - 1))
        connection.sendall(asked + b"Connection: close\r\n\r\n")
        n_read = read_slowly(connection, for_s=4 * DEADLINE_S)
        while piece := connection.recv(1 << 20):
            n_read += len(piece)

    assert n_read >= n_answers * (whole - 100)  # only the last one says that it closes


def read_slowly(connection: socket.socket, *, for_s: float) -> int:
    """Read some 50 KiB a second for a while; answers how many bytes came."""
    n_read, deadline = 0, time.monotonic() + for_s
    while time.monotonic() < deadline:
        n_read += len(connection.recv(5 << 10))
        time.sleep(0.1)
    return n_read


def test_idle_connections_give_way(service):
    """Many times as many as are allowed: a new client is served at once, before any deadline."""
    with ExitStack() as stack:
        for _ in range(10 * N_CONNECTIONS):
            stack.enter_context(dial(service.address))
        with httpx2.Client(base_url=service.client.base_url, timeout=20) as fresh:
            assert fresh.get("/healthz").status_code == 200
        assert service.n_connections() <= N_CONNECTIONS


def test_bodies_that_are_waited_for_give_way(service):
    """Their heads are there, and that is all."""
    with ExitStack() as stack:
        for _ in range(2 * N_CONNECTIONS):
            stack.enter_context(dial(service.address)).sendall(HEADS["request"])
        with httpx2.Client(base_url=service.client.base_url, timeout=20) as fresh:
            assert fresh.get("/healthz").status_code == 200


def stream_of(service: Service, job_id: str, *, client: str = "127.0.0.1") -> socket.socket:
    connection = dial(service.address, client=client)
    asked = f"GET /jobs/{job_id}/events HTTP/1.1\r\nAccept: text/event-stream\r\n"
    connection.sendall(asked.encode() + HOST + b"\r\n")
    return connection


def first_line(service: Service, job_id: str) -> bytes:
    with stream_of(service, job_id) as stream:
        return stream.recv(15)


def test_when_all_connections_are_at_work_a_new_one_is_told(service):
    """Nobody gives way who waits for us: 503, and there is room again when one ends."""
    job_id = service.make_job()
    clients = [f"127.0.0.{n}" for n in range(2, 2 + N_CONNECTIONS // N_WAITING)]
    with ExitStack() as stack:
        streams = [
            stack.enter_context(stream_of(service, job_id, client=client))
            for client in clients
            for _ in range(N_WAITING)
        ]
        heads = [stream.recv(15) for stream in streams]
        reply = ask(service.address, HEALTH)
        streams[0].close()
        wait_until(lambda: ask(service.address, HEALTH).status == 200)

    assert set(heads) == {b"HTTP/1.1 200 OK"}
    assert (reply.status, reply.problem["code"]) == (503, "overloaded")
    assert (reply.headers["retry-after"], reply.headers["connection"]) == ("1", "close")


def test_one_client_has_so_many_streams(service):
    """One more is a problem, and a long poll is answered at once; when one ends there is room."""
    job_id = service.make_job()
    with ExitStack() as stack:
        streams = [stack.enter_context(stream_of(service, job_id)) for _ in range(N_WAITING)]
        heads = [stream.recv(15) for stream in streams]
        wait_until(lambda: service.client.get(f"/jobs/{job_id}/events").status_code == 429)
        refused = service.client.get(f"/jobs/{job_id}/events")
        polled = service.client.get(f"/jobs/{job_id}?wait=60")  # the client waits 10 s
        page = service.client.get(
            f"/jobs/{job_id}/events", headers={"accept": "application/json"}
        )
        streams[0].close()
        wait_until(lambda: first_line(service, job_id) == b"HTTP/1.1 200 OK")

    assert set(heads) == {b"HTTP/1.1 200 OK"}
    assert (refused.json()["code"], refused.headers["Retry-After"]) == ("rate_limited", "1")
    assert (polled.status_code, page.status_code) == (200, 200)
    assert polled.headers["Retry-After"]
