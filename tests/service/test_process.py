"""The real server process."""

import signal
import socket
from pathlib import Path

import pytest

from support.service import ROWS
from support.service_process import running_service, wait_until
from support.valkey import running_valkey
from support.workers import log_lines


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory):
    """A running service and its data folder, for tests that leave it running."""
    data_dir = tmp_path_factory.mktemp("service")
    with running_valkey() as url, running_service(data_dir, url) as (client, _):
        yield client, data_dir


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
            b"POST /datasets HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
            b"Content-Type: application/jsonl\r\n\r\n{"
        )
        wait_until(lambda: list((data_dir / "tmp").glob("upload-*")))
    wait_until(lambda: not list((data_dir / "tmp").iterdir()))

    assert list((data_dir / "uploads").iterdir()) == []
    log = (data_dir / "log").read_text()
    assert "Traceback" not in log
    assert "request.failed" not in log
