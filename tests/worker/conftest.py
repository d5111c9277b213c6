"""A data folder with tiny models, and a worker that runs the queue in this process."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis

from fimlora_worker.job.work_folders import remove_ended_progress
from support.burst import run_what_is_queued
from support.jobs import Jobs
from support.model_folders import make_decoder, make_encoder, minilm_folder


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models, made once: ``tiny`` (encoder), ``decoder``, ``chat``; and ``minilm``."""
    folder = tmp_path_factory.mktemp("models")
    make_encoder(folder / "tiny")
    make_decoder(folder / "decoder")
    make_decoder(folder / "chat", chat=True)
    (folder / "minilm").symlink_to(minilm_folder())
    return folder


@pytest.fixture
def data_dir(tmp_path: Path, model_folders: Path) -> Path:
    """A fresh data folder."""
    folder = tmp_path / "data"
    (folder / "datasets").mkdir(parents=True)
    (folder / "models").symlink_to(model_folders)
    return folder


@pytest.fixture
def jobs(redis_client: Redis, data_dir: Path) -> Jobs:
    return Jobs(redis_client, data_dir)


@pytest.fixture
def run_queue(
    jobs: Jobs, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], None]]:
    """Run everything that is queued, in this process."""
    monkeypatch.setenv("REDIS_URL", valkey_url)
    monkeypatch.setenv("FIMLORA_DATA_DIR", str(jobs.data_dir))

    def run(*, max_jobs: int | None = None) -> None:
        run_what_is_queued(jobs.redis, max_jobs=max_jobs)

    yield run
    # What is saved is for the next attempt; that of jobs that have ended is not kept.
    remove_ended_progress(jobs.data_dir / "tmp", jobs.store)
    left = [path for path in (jobs.data_dir / "tmp").iterdir() if path.suffix != ".sums"]
    assert not left, "an attempt left its work folder behind"
