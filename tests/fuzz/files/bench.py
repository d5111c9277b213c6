"""Where a damaged file is tried: the app over a real store, and a worker for what it accepts."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis import Redis

from fimlora_contract.problems import PROBLEMS
from fimlora_jobs.store import JobStore
from fimlora_service.app import create_app
from fimlora_service.settings import Settings
from support.burst import run_what_is_queued
from support.model_folders import make_decoder, make_encoder
from support.testclient import TestClient

MODEL = "fuzzed"
# Codes that say nothing of the file: whatever was damaged, it must not come to these.
FAULTS = frozenset({"internal", "worker_lost", "timeout"})
# Nor would anything be tried that the service does not look at for who asks, or how often.
UNSEEN = frozenset({401, 403, 404, 405, 408, 409, 429})


class Fault(AssertionError):
    """A file was neither accepted nor refused by name."""


@dataclass
class Bench:
    """One app, one data folder, and a worker in this process.

    Attributes:
        http: A client of the app.
        data_dir: Its data folder.
        redis: Its store.
        jobs_left: Jobs that may still be run; each takes a moment.
    """

    http: TestClient
    data_dir: Path
    redis: Redis
    jobs_left: int
    sound: dict[str, Path] = field(default_factory=dict)

    def send(self, path: str, **request: Any) -> dict[str, Any] | None:
        """POST something: the answer's body, or ``None`` where it was refused by name.

        Raises:
            Fault: The answer is neither.
        """
        answer = self.http.post(path, **request)
        if answer.status_code < 300:
            return dict(answer.json())
        self._check_problem(path, answer)
        return None

    def calibrate(self, **body: Any) -> bool:
        """Whether a request is accepted, and its job carried out while some may be run.

        Raises:
            Fault: It ends in anything else.
        """
        request = {
            "base_model": "local:encoder", "budget": 2, "target_modules": "all-linear",
            "calibration": {"n_batches": 1, "batch_size": 2, "max_length": 16, "head_rows": 2},
        }  # fmt: skip
        if self.jobs_left <= 0:
            return self.send("/estimate", json=request | body) is not None
        job = self.send("/calibrate", json=request | body)
        if job is None:
            return False
        self.jobs_left -= 1
        run_what_is_queued(self.redis)
        record = JobStore(self.redis).get(job["id"])
        error = record.json_field("error")
        if not record.status.is_final or (error and error["code"] in FAULTS):
            raise Fault(f"job {record.status}: {error}")
        self._check_text(str(error))
        return error is None

    def lay_out(self, name: str, *, of: str) -> Path:
        """The folder of a registered model, sound; what is damaged is written over it."""
        folder = self.data_dir / "models" / MODEL
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.sound[of], folder)
        return folder / name

    def _check_problem(self, path: str, answer: Any) -> None:
        if answer.headers["content-type"] != "application/problem+json":
            raise Fault(f"{path} answers {answer.status_code} as {answer.headers}")
        problem = answer.json()
        is_seen = answer.status_code < 500 and answer.status_code not in UNSEEN
        if not is_seen or PROBLEMS.get(problem["code"]) is None:
            raise Fault(f"{path} answers {answer.status_code}: {problem}")
        if not problem["detail"].strip():
            raise Fault(f"{path} answers {problem['code']} and says nothing")
        self._check_text(answer.text)

    def _check_text(self, text: str) -> None:
        if str(self.data_dir) in text:
            raise Fault(f"a path of the server is told: {text[:500]}")
        if len(text) > 20_000:
            raise Fault(f"a refusal of {len(text)} characters: {text[:200]}")


@contextmanager
def open_bench(folder: Path, url: str, *, max_jobs: int) -> Iterator[Bench]:
    """Start the app over a data folder with sound models."""
    data_dir = folder / "data"
    sound = {
        "encoder": make_encoder(data_dir / "models" / "encoder"),
        "decoder": make_decoder(data_dir / "models" / "decoder"),
        "chat": make_decoder(data_dir / "models" / "chat", chat=True),
    }
    environment = {
        "REDIS_URL": url, "FIMLORA_DATA_DIR": str(data_dir), "FIMLORA_DEVICE": "cpu",
        "FIMLORA_TORCH_THREADS": "1", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    before, place = dict(os.environ), Path.cwd()
    os.environ.update(environment)
    settings = Settings(
        redis_url=url, data_dir=data_dir, hub_endpoint="http://127.0.0.1:9", hub_token=None
    )
    try:
        with (
            Redis.from_url(url) as redis,
            TestClient(create_app(settings), raise_server_exceptions=False) as http,
        ):
            yield Bench(http, data_dir, redis, max_jobs, sound)
    finally:
        os.environ.clear()
        os.environ.update(before)
        os.chdir(place)
