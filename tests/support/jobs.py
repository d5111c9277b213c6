"""Put jobs on record and on the queue as the service does, without the service."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import Redis

from fimlora_contract.comparison_requests import ComparisonRequest
from fimlora_contract.digests import digest_of
from fimlora_contract.evaluations import EvaluationRequest
from fimlora_contract.jobs import JobKind
from fimlora_contract.requests import CalibrationRequest
from fimlora_jobs.datasets.folders import FolderDigests, content_files
from fimlora_jobs.models.base_model_name import base_model_name
from fimlora_jobs.queue import RqTransport
from fimlora_jobs.record import JobRecord
from fimlora_jobs.store import JobStore

REQUESTS: dict[JobKind, type[CalibrationRequest]] = {
    JobKind.CALIBRATION: CalibrationRequest,
    JobKind.COMPARISON: ComparisonRequest,
}
LABELLED = [{"text": f"w{n} w{n * 7 % 50} w{n % 5}", "label": n % 3} for n in range(48)]
# No text twice: what is held out must not be trained on.
DISTINCT = [{"text": f"w{n % 50} w{n // 2} w{n % 7}", "label": n % 3} for n in range(96)]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A registered or uploaded dataset file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@dataclass
class Jobs:
    """Submits jobs over one data folder and watches them."""

    redis: Redis
    data_dir: Path

    def __post_init__(self) -> None:
        self.store = JobStore(self.redis)
        self.transport = RqTransport(self.redis)

    def submit(
        self,
        *,
        model: str = "tiny",
        dataset: Any = None,
        statistics_from: str = "",
        kind: JobKind = JobKind.CALIBRATION,
        **request: Any,
    ) -> str:
        """Queue a job on registered names or inline rows; answers its id."""
        body = {
            "base_model": {"source": "local", "name": model},
            "dataset": dataset or {"source": "inline", "rows": LABELLED},
            "budget": 4,
        } | request
        accepted = REQUESTS[kind].model_validate(body).model_dump(mode="json")
        resolved = {
            "base_model": self._model(model),
            "dataset": self._dataset(accepted["dataset"]),
        }
        if accepted["retain"]:
            resolved["retain"] = self._dataset(accepted["retain"])
        return self._put(accepted, resolved, statistics_from=statistics_from, kind=kind)

    def submit_evaluation(self, *, statistics_from: str = "", **request: Any) -> str:
        """Queue a small evaluation on the tiny model; answers its id."""
        body = {
            "base_model": {"source": "local", "name": "tiny"},
            "dataset": {"source": "inline", "rows": DISTINCT},
            "budget": 4,
            "calibration": {"n_batches": 2, "batch_size": 4},
            "seeds": 2,
            "steps": 4,
            "batch_size": 4,
            "learning_rates": [0.001, 0.002],
            "quick": True,
        } | request
        accepted = EvaluationRequest.model_validate(body).model_dump(mode="json")
        resolved = {
            "base_model": self._model(accepted["base_model"]["name"]),
            "dataset": self._dataset(accepted["dataset"]),
            "plans": accepted["plans"],
        }
        if accepted["retain"]:
            resolved["retain"] = self._dataset(accepted["retain"])
        if accepted["eval_dataset"]:
            resolved["held_out"] = self._dataset(accepted["eval_dataset"])
        kind = JobKind.EVALUATION
        return self._put(accepted, resolved, statistics_from=statistics_from, kind=kind)

    def submit_resolved(self, *, resolved: dict[str, Any], **body: Any) -> str:
        """Queue a job whose references a test has resolved."""
        request = CalibrationRequest.model_validate({"budget": 4} | body)
        return self._put(request.model_dump(mode="json"), resolved)

    def _put(
        self,
        accepted: dict[str, Any],
        resolved: dict[str, Any],
        *,
        statistics_from: str = "",
        kind: JobKind = JobKind.CALIBRATION,
    ) -> str:
        job_id = self.store.new_id()
        digest = digest_of([accepted, resolved])
        self.store.create(
            job_id,
            kind=kind,
            request=accepted,
            resolved=resolved,
            digest=digest,
            statistics_from=statistics_from,
        )
        self.transport.enqueue(job_id, 1)
        return job_id

    def submit_long(
        self, *, n_batches: int = 4096, n_head_rows: int = 0, **request: Any
    ) -> str:
        """Queue a job that takes tens of seconds on a tiny model; its head is fitted on request."""
        head = {"head_rows": n_head_rows} if n_head_rows else {"head": "fresh"}
        name = f"many-{n_batches}.jsonl"
        if not (self.data_dir / "datasets" / name).exists():
            rows = [{"text": f"w{n % 50} w{n % 7}", "label": n % 2} for n in range(n_batches)]
            write_jsonl(self.data_dir / "datasets" / name, rows)
        return self.submit(
            dataset={"source": "local", "name": name},
            calibration={"n_batches": n_batches, "batch_size": 1, **head},
            **request,
        )

    def get(self, job_id: str) -> JobRecord:
        return self.store.get(job_id)

    def wait(
        self, job_id: str, until: Callable[[JobRecord], bool], *, timeout_s: float = 60.0
    ) -> JobRecord:
        """Poll until a record looks as wanted."""
        deadline = time.monotonic() + timeout_s
        while not until(record := self.get(job_id)):
            assert time.monotonic() < deadline, f"still {record.fields} after {timeout_s} s"
            time.sleep(0.05)
        return record

    def wait_running(self, job_id: str, *, attempt: int = 1) -> JobRecord:
        """Wait until batches are being measured."""
        return self.wait(
            job_id,
            lambda r: (
                r.attempt == attempt
                and ((r.json_field("progress") or {}).get("batch") or 0) > 2
            ),
        )

    def wait_final(self, job_id: str, *, timeout_s: float = 60.0) -> JobRecord:
        """Wait until the job has ended."""
        return self.wait(job_id, lambda r: r.status.is_final, timeout_s=timeout_s)

    def _model(self, name: str) -> dict[str, Any]:
        digest = FolderDigests().of_model(self.data_dir / "models" / name)
        called = base_model_name(self.data_dir / "models", name)
        return {"source": "local", "name": name, "digest": digest, "called": called}

    def _dataset(self, dataset: dict[str, Any]) -> dict[str, Any]:
        if dataset["source"] == "local":
            files = content_files(self.data_dir / "datasets" / dataset["name"])
            digest = FolderDigests().of_files(files)
        else:
            digest = digest_of(dataset)
        known = {key: dataset[key] for key in ("source", "id", "name") if key in dataset}
        return known | {"digest": digest, "fields": None, "rows": None}
