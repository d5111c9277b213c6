"""What the API has told is true when the power was cut right behind the answer."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest
from redis import Redis

from fimlora_contract.jobs import JobStatus
from fimlora_jobs.results.local import LocalArtifacts
from fimlora_jobs.store import JobStore
from support.powercut import PoweredFolder, build_library
from support.refusing import ProductionServer, short_folder
from support.service import ROWS, as_jsonl, commit_result, make_model
from support.workers import PYTHONPATH

pytestmark = pytest.mark.slow
BODY = {"base_model": "tiny", "dataset": {"source": "inline", "rows": ROWS}, "budget": 8}


@dataclass
class PoweredStack:
    """Valkey and the API, whose power can be cut."""

    folder: Path
    powered: PoweredFolder
    valkey: ProductionServer
    service: "subprocess.Popen[bytes]"
    url: str

    @property
    def data_dir(self) -> Path:
        return self.folder / "data" / "service"

    def cut(self) -> None:
        for process in (self.valkey.process, self.service):
            process.kill()
        for process in (self.valkey.process, self.service):
            process.wait()
        self.powered.cut()
        self.valkey.start()


@contextmanager
def powered_stack(is_far: bool = False) -> Iterator[PoweredStack]:
    with short_folder() as folder:
        data_dir = folder / "data" / "service"
        make_model(data_dir / "models" / "tiny")
        for name in ("artifacts", "uploads", "tmp"):
            (data_dir / name).mkdir()
        powered = PoweredFolder(folder / "data", folder / "store", build_library(folder))
        valkey = ProductionServer(folder, env=powered.env, is_far=is_far)
        port = free_port()
        settings = {
            "REDIS_URL": valkey.url, "FIMLORA_DATA_DIR": str(data_dir),
            "FIMLORA_PORT": str(port), "PYTHONPATH": PYTHONPATH, "PYTHONFAULTHANDLER": "1",
        }  # fmt: skip
        with (folder / "service.log").open("wb") as log:
            service = subprocess.Popen(
                [sys.executable, "-m", "fimlora_service"],
                env=powered.env | settings, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_up(url, service, folder / "service.log")
            yield PoweredStack(folder, powered, valkey, service, url)
        finally:
            for process in (valkey.process, service):
                process.kill()
                process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_up(url: str, service: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert service.poll() is None, f"status {service.returncode}: {log.read_text()}"
        with suppress(httpx2.HTTPError):
            if httpx2.get(f"{url}/healthz").is_success:
                return
        time.sleep(0.05)
    raise AssertionError(f"the service did not answer: {log.read_text()}")


@dataclass
class Clients:
    """Clients that submit as fast as they are answered, and cancel every third job."""

    url: str
    accepted: list[str] = field(default_factory=list)
    canceled: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self, number: int) -> None:
        with suppress(httpx2.HTTPError), httpx2.Client(base_url=self.url, timeout=20) as http:
            for n in range(1000):
                if self.stop.is_set():
                    return
                body = BODY | {"calibration": {"seed": 1000 * number + n}}
                answer = http.post("/calibrate", json=body)
                if answer.status_code == 202:
                    self.accepted.append(answer.json()["id"])
                if n % 3 == 2:
                    job_id = answer.json()["id"]
                    if http.post(f"/jobs/{job_id}/cancel").json()["status"] == "canceled":
                        self.canceled.append(job_id)


@pytest.mark.parametrize("is_far", [False, True], ids=["near", "far"])
def test_no_accepted_job_is_lost_when_the_power_is_cut(is_far):
    """Eight clients at once, and the cut while they go on: every 202 is on record after it."""
    with powered_stack(is_far) as stack:
        clients = Clients(stack.url)
        threads = [threading.Thread(target=clients.run, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 60
        while len(clients.accepted) < 24 or len(clients.canceled) < 4:
            assert time.monotonic() < deadline, (stack.folder / "service.log").read_text()
            time.sleep(0.001)
        stack.cut()
        clients.stop.set()
        for thread in threads:
            thread.join()

        with Redis.from_url(stack.valkey.url) as redis:
            store = JobStore(redis)
            found = {record.id: record for record in store.shown_many(clients.accepted)}

    assert set(clients.accepted) == set(found)
    assert {found[id_].status for id_ in clients.canceled} == {JobStatus.CANCELED}


def accepted(http: httpx2.Client) -> str:
    """A job's id, for a client that does as it is told.

    The API gives the store two seconds to answer, so that no request hangs on one that is away. Where
    the machine lets the store's process wait longer than that, it is taken for away: 503
    `redis_unavailable` with `Retry-After`, and no other 503.
    """
    deadline = time.monotonic() + 60
    key = {"Idempotency-Key": "told"}
    while (answer := http.post("/calibrate", json=BODY, headers=key)).status_code == 503:
        assert answer.json()["code"] == "redis_unavailable", answer.text
        assert time.monotonic() < deadline, answer.text
        time.sleep(float(answer.headers["Retry-After"]))
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def test_a_store_that_is_held_up_is_told_and_the_job_is_made_once():
    """What the machine does to it under load: it is stopped while the API waits."""
    with powered_stack() as stack, Redis.from_url(stack.valkey.url) as redis:
        with httpx2.Client(base_url=stack.url, timeout=20) as http:
            stack.valkey.process.send_signal(signal.SIGSTOP)
            first = http.post("/calibrate", json=BODY, headers={"Idempotency-Key": "told"})
            stack.valkey.process.send_signal(signal.SIGCONT)
            job_id = accepted(http)

        assert (first.status_code, first.json()["code"]) == (503, "redis_unavailable")
        assert first.headers["Retry-After"] == "2"
        assert [record.id for record in JobStore(redis).page(limit=9)] == [job_id]


def test_an_end_and_an_upload_that_were_told_stay():
    """A job is not seen to have ended before that is on disk, nor an upload to be kept."""
    with powered_stack() as stack, Redis.from_url(stack.valkey.url) as redis:
        store = JobStore(redis)
        with httpx2.Client(base_url=stack.url, timeout=20) as http:
            job_id = accepted(http)
            store.start(job_id, 1, worker="w")
            store.succeed(job_id, 1, commit_result(stack.data_dir))
            status = http.get(f"/jobs/{job_id}").json()["status"]
            uploaded = http.post(
                "/datasets",
                content=as_jsonl(ROWS),
                headers={"content-type": "application/jsonl"},
            )
        stack.cut()
        with Redis.from_url(stack.valkey.url) as again:
            left = JobStore(again).get(job_id).status
        kept = stack.data_dir / "uploads" / uploaded.json()["id"]

        assert status == left == "succeeded"
        assert uploaded.status_code == 201, uploaded.text
        assert (kept / "data.jsonl").read_bytes() == as_jsonl(ROWS)
        assert (kept / "meta.json").read_bytes()


COMMIT = """
import os, sys
from pathlib import Path
from fimlora_jobs.results.local import LocalArtifacts
from fimlora_jobs.results.store import describe
root = Path(sys.argv[1])
(root / "unsynced").write_text("x")
work = root / "tmp" / "work"
work.mkdir()
for name in ("adapter_config.json", "rank_map.json"):
    (work / name).write_text("{}")
print(LocalArtifacts(root / "artifacts").commit(work, describe(work)), flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_committed_result_is_whole_after_a_cut(tmp_path: Path):
    """Files, names and the rename to its address; what was not synced is gone."""
    root = tmp_path / "root"
    for name in ("artifacts", "tmp"):
        (root / name).mkdir(parents=True)
    powered = PoweredFolder(root, tmp_path / "store", build_library(tmp_path))
    committed = subprocess.run(
        [sys.executable, "-c", COMMIT, str(root)],
        env=powered.env | {"PYTHONPATH": os.environ.get("PYTHONPATH", PYTHONPATH)},
        capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    powered.cut()

    artifacts = LocalArtifacts(root / "artifacts")
    assert not (root / "unsynced").exists()
    for name in ("adapter_config.json", "rank_map.json"):
        assert artifacts.local(committed, name).read_bytes() == b"{}"
        assert artifacts.stat(committed, name).size == 2


APPEND = """
import os, sys
lines = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
for n in range(1000):
    os.write(lines, b"%d\\n" % n)
    os.fsync(lines)
"""
SYNC = """
import os, sys
while True:
    lines = os.open(sys.argv[1], os.O_RDONLY)
    os.fsync(lines)
    os.close(lines)
"""


def test_a_file_that_two_processes_sync_at_once_is_kept(tmp_path: Path):
    """As a server and an API beside it sync the same append-only file."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "lines").touch()
    powered = PoweredFolder(root, tmp_path / "store", build_library(tmp_path))
    writer, reader = (
        subprocess.Popen(
            [sys.executable, "-S", "-c", code, str(root / "lines")],
            env=powered.env, stderr=subprocess.PIPE, text=True,
        )
        for code in (APPEND, SYNC)
    )  # fmt: skip
    is_written = writer.wait(60) == 0
    reader.kill()
    told = [process.communicate()[1] for process in (writer, reader)]
    assert is_written, told
    assert reader.returncode == -signal.SIGKILL, told
    powered.cut()

    assert (root / "lines").read_text().split() == [str(n) for n in range(1000)]
