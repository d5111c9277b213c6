"""The real server process."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from support.service import ROWS
from support.valkey import running_valkey
from support.workers import log_lines

ROOT = Path(__file__).parents[2]
STARTUP_S = 20.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running_service(data_dir: Path, redis_url: str):
    """Start ``python -m fimlora_service``, yield a client and the process, stop it."""
    port = free_port()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(
            str(ROOT / p) for p in ("clients/python", "service", "worker")
        ),
        "REDIS_URL": redis_url,
        "FIMLORA_DATA_DIR": str(data_dir),
        "FIMLORA_PORT": str(port),
    }
    log = data_dir / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "fimlora_service"], env=environment, stderr=stderr
        )
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            _wait_until_up(client, process)
            yield client, process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory):
    """A running service and its data folder, for tests that leave it running."""
    data_dir = tmp_path_factory.mktemp("service")
    with running_valkey() as url, running_service(data_dir, url) as (client, _):
        yield client, data_dir


def _wait_until_up(client: httpx2.Client, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + STARTUP_S
    while time.monotonic() < deadline:
        assert process.poll() is None, "the service ended at once"
        try:
            client.get("/healthz")
        except httpx2.ConnectError:
            time.sleep(0.05)
        else:
            return
    pytest.fail(f"the service did not answer within {STARTUP_S:g} s")


@pytest.mark.slow
def test_the_server_process_accepts_a_job_and_stops_on_sigterm(data_dir, valkey_url, store):
    """Its own environment, a real socket, a live stream, and a log a person can read."""
    with running_service(data_dir, valkey_url) as (client, process):
        body = {
            "base_model": "tiny",
            "dataset": {"source": "inline", "rows": ROWS},
            "budget": 8,
        }
        job = client.post("/calibrate", json=body).json()
        store.start(job["id"], 1, worker="w")
        with client.stream("GET", f"/jobs/{job['id']}/events") as stream:
            lines = stream.iter_lines()
            running = next(line for line in lines if '"running"' in line)
            process.send_signal(signal.SIGTERM)  # with the stream still open
            code = process.wait(timeout=3)

    assert job["status"] == "queued"
    assert running.startswith("data: ")
    assert code == -signal.SIGTERM  # uvicorn ends by the signal it was sent
    lines = log_lines(data_dir / "log")
    (queued,) = [line for line in lines if line["event"] == "job.queued"]
    assert (queued["job_id"], queued["attempt"]) == (job["id"], 1)
    assert queued["request_id"] == store.get(job["id"]).request_id
    assert not any("exception" in line for line in lines)


@pytest.mark.slow
def test_what_a_start_puts_off_is_made_up_for_and_ctrl_c_ends_it_quietly(data_dir, valkey_url):
    """No request asks for numpy: the process loads it by itself. It ends in good order."""
    with running_service(data_dir, valkey_url) as (_, process):
        maps = Path(f"/proc/{process.pid}/maps")
        wait_until(lambda: "_multiarray_umath" in maps.read_text())
        process.send_signal(signal.SIGINT)
        code = process.wait(timeout=5)

    assert code == 0
    assert "Traceback" not in (data_dir / "log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "sent", [b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\r\n\r\n", b"GET / HTTP/1.1\r\nHost\r\n\r\n"]
)
def test_what_is_no_http_is_refused_and_harms_nobody(service, sent):
    """A browser that speaks TLS, or a client with a typo in a header; others are served on."""
    client, data_dir = service
    address = (client.base_url.host, client.base_url.port)

    with socket.create_connection(address, timeout=5) as connection:
        connection.sendall(sent)
        answer = connection.makefile("rb").read()  # to the end: the connection is closed

    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert client.get("/healthz").status_code == 200
    assert "Traceback" not in (data_dir / "log").read_text()


@pytest.mark.slow
def test_a_client_that_goes_away_leaves_nothing_behind(service):
    """In the middle of an upload and of a long poll: no file stays, no fault is logged."""
    client, data_dir = service
    address = (client.base_url.host, client.base_url.port)

    with socket.create_connection(address) as connection:
        connection.sendall(
            b"POST /datasets HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
            b"Content-Type: application/jsonl\r\n\r\n{"
        )
        wait_until(lambda: list((data_dir / "tmp").glob("upload-*")))
    wait_until(lambda: not list((data_dir / "tmp").iterdir()))

    assert list((data_dir / "uploads").iterdir()) == []
    log = (data_dir / "log").read_text()
    assert "Traceback" not in log
    assert "request.failed" not in log


def wait_until(condition: Callable[[], object], *, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
