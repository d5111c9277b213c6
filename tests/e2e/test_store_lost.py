"""Valkey's data is gone, and everything was killed: what had ended is there again."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fimlora_client import Client
from fimlora_client.stack.ownership import Running, find_running
from support.jobs import LABELLED
from support.model_folders import make_encoder
from support.workers import PYTHONPATH, wait_dead

pytestmark = pytest.mark.slow


def environment(**more: str) -> dict[str, str]:
    ours = ("FIMLORA_", "REDIS_URL", "XDG_RUNTIME_DIR")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    return kept | {"PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"} | more


@contextmanager
def running_stack(data_dir: Path, *, url: str) -> Iterator[Running]:
    """A stack that ends as by a loss of power."""
    command = [sys.executable, "-m", "fimlora_client.cli", "up", "--port", "0"]
    log = data_dir.with_name("log")
    with log.open("ab") as file:
        process = subprocess.Popen(
            [*command, "--data-dir", str(data_dir)],
            env=environment(FIMLORA_ARTIFACTS_URL=url), stdout=file, stderr=file,
            start_new_session=True,
        )  # fmt: skip
    below: list[int] = []
    try:
        deadline = time.monotonic() + 120
        while not (running := find_running(data_dir)) or running.pid != process.pid:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield running
    finally:
        below = descendants(process.pid)
        for pid in (process.pid, *below):
            os.kill(pid, signal.SIGKILL)
        process.wait()
        for pid in below:
            wait_dead(pid)


def descendants(pid: int) -> list[int]:
    task = Path(f"/proc/{pid}/task/{pid}/children")
    children = [int(child) for child in task.read_text().split()]
    return children + [below for child in children for below in descendants(child)]


def fimlora(running: Running, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "fimlora_client.cli", *map(str, arguments)],
        env=environment(FIMLORA_URL=running.url, COLUMNS="100"),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("storage", ["folder", "s3"])
def test_what_had_ended_is_there_when_the_store_has_lost_its_data(storage, request, tmp_path):
    """The job as it was, its files, its digest, its pin, its upload, and the answer to an equal request."""
    data_dir = tmp_path / "data"
    url = request.getfixturevalue("s3").url if storage == "s3" else ""
    make_encoder(data_dir / "models" / "tiny")
    with running_stack(data_dir, url=url) as running, Client(running.url) as client:
        dataset = client.datasets.upload(LABELLED).id
        asked = {
            "base_model": "tiny", "dataset": dataset, "budget": 4, "metadata": {"team": "a"},
            "calibration": {"n_batches": 2, "batch_size": 2},
        }  # fmt: skip
        job = client.jobs.wait(client.calibrate(**asked).id)
        assert job.result is not None
        client.rank_patterns.pin("sst2", "prod", job_id=job.id)
    shutil.rmtree(data_dir / "valkey")

    with running_stack(data_dir, url=url) as running, Client(running.url) as client:
        assert client.jobs.retrieve(job.id) == job
        assert job.id in fimlora(running, "show", job.id)
        fimlora(running, "fetch", job.id, "--output", tmp_path / "fetched")
        assert client.rank_patterns.retrieve(job.result.digest).digest == job.result.digest
        assert client.rank_patterns.pinned("sst2", "prod").digest == job.result.digest
        assert client.calibrate(**asked).id == job.id
        again = client.jobs.wait(client.calibrate(**asked | {"budget": 2}).id)
        assert again.statistics_from == job.id
    assert (tmp_path / "fetched" / "adapter_config.json").is_file()
