"""A server of the jobs that cannot be reached at start: every process says so in time."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.valkey import running_valkey
from support.workers import PYTHONPATH, log_lines, running_worker

SAYS_WITHIN_S = 10.0
pytestmark = pytest.mark.slow


@contextlib.contextmanager
def silent_port() -> Iterator[int]:
    """A port that takes connections and answers nothing, as a host that hangs does."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    """A port that nobody listens on, and that nobody else is given."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def run_service(url: str, folder: Path, log: Path) -> "subprocess.Popen[bytes]":
    settings = {"REDIS_URL": url, "FIMLORA_DATA_DIR": str(folder), "PYTHONPATH": PYTHONPATH}
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "fimlora_service", "--port", "0"],
            env={**os.environ, **settings}, stdout=output, stderr=output,
        )  # fmt: skip


def first(event: str, log: Path, *, within_s: float) -> dict[str, object]:
    """The first line of an event; a process that starts on a busy machine gets its time first."""
    deadline = time.monotonic() + 60 + within_s
    while not (found := [line for line in log_lines(log) if line["event"] == event]):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    return found[0]


@pytest.mark.parametrize(
    ("name", "port_of"), [("service", silent_port), ("worker", closed_port)]
)
def test_a_process_says_what_it_cannot_reach(name, port_of, tmp_path):
    """Which address without its password, why, and what to do; it lives on."""
    log = tmp_path / "log"
    with contextlib.ExitStack() as stack:
        url = f"redis://me:s3cret@127.0.0.1:{stack.enter_context(port_of())}/0"
        if name == "service":
            process = run_service(url, tmp_path / "data", log)
            stack.callback(process.wait)
            stack.callback(process.kill)
        else:
            worker = running_worker(url, tmp_path / "data", log)
            process = stack.enter_context(worker).process
        said = first("store.unreachable", log, within_s=SAYS_WITHIN_S)

        assert process.poll() is None
    assert said["address"] == url.replace("s3cret", "***")
    assert said["level"] == "warning"
    assert "correct REDIS_URL" in str(said["next_step"])
    assert said["error"]
    assert "s3cret" not in log.read_text()
    assert "Traceback" not in log.read_text()


def test_a_worker_that_was_early_begins_when_the_server_comes(tmp_path):
    """Compose and Kubernetes start everything at once."""
    with running_valkey() as url:
        path = Path(url.removeprefix("unix://"))
        hidden = path.rename(path.with_name("later"))
        log = tmp_path / "log"
        with running_worker(url, tmp_path / "data", log, "--burst") as worker:
            first("store.unreachable", log, within_s=SAYS_WITHIN_S)
            hidden.rename(path)
            assert worker.wait(60) == 0

    assert worker.has_logged("store.reached")


def test_a_worker_that_waits_stops_when_it_is_told_to(tmp_path):
    """Also as the first process of a container, which signals do not end by themselves."""
    log = tmp_path / "log"
    with running_worker("unix:///nowhere/s", tmp_path / "data", log) as worker:
        first("store.unreachable", log, within_s=SAYS_WITHIN_S)
        worker.signal(signal.SIGTERM)

        assert worker.wait(10) == 0


def test_up_refuses_a_server_that_does_not_answer(tmp_path):
    """Somebody sits before it: it ends with the reason and the next step."""
    with silent_port() as port:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("FIMLORA_")}
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "fimlora_client.cli", "up", "--port", "0"],
            env=kept | {"PYTHONPATH": PYTHONPATH, "REDIS_URL": f"redis://:s3cret@127.0.0.1:{port}"},
            cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        seconds = time.monotonic() - began

    assert done.returncode == 1
    assert f"redis://:***@127.0.0.1:{port}" in done.stderr
    assert "correct REDIS_URL" in done.stderr
    assert "Traceback" not in done.stderr
    assert "s3cret" not in done.stderr
    assert seconds < 30  # its answer is given up after 4; the rest is a start on a busy machine
