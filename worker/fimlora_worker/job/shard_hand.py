"""A worker that measures one shard of a job which another one leads."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fimlora_contract.comparison_requests import ComparisonRequest
from fimlora_contract.jobs import JobKind, Stage
from fimlora_contract.requests import CalibrationRequest
from fimlora_jobs.record import JobRecord
from fimlora_jobs.runs import Runs
from fimlora_worker.job.head import JobHead
from fimlora_worker.job.measurement_progress import MeasurementProgress
from fimlora_worker.job.measuring import Part, measure_shard
from fimlora_worker.job.preparation import Prepared, fetch, prepare
from fimlora_worker.job.progress import Reporter
from fimlora_worker.job.shards import Shards, on_of
from fimlora_worker.job.work_folders import progress_folder
from fimlora_worker.job.worker_process import WorkerProcess

NOTE_S = 0.5


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class ShardHand:
    """Whatever is needed to measure any shard of a job.

    Attributes:
        request: The job's.
        prepared: Its model and batches, the same as the attempt that leads has.
        shards: Its shards.
        reporter: Speaks for the hand.
    """

    request: CalibrationRequest
    prepared: Prepared
    shards: Shards
    reporter: Reporter

    @classmethod
    def of(
        cls, record: JobRecord, runs: Runs, process: WorkerProcess, reporter: Reporter
    ) -> "ShardHand | None":
        """Make ready what this process has not made ready for the job before.

        Returns:
            The hand; ``None`` where it would measure otherwise than is wanted, or where what it
            leaves would not be found.
        """
        request = request_of(record)

        def load() -> Prepared:
            folder, rows = fetch(request, record.resolved, process=process, reporter=reporter)
            return prepare(
                request,
                record.resolved,
                folder=folder,
                rows=rows,
                process=process,
                fits_head=False,
                on_example=reporter.keep_alive,
            )

        prepared: Prepared = process.readers.get(("shards", record.id), size=1, load=load)
        folder = progress_folder(process.settings.tmp_dir, record.id)
        shards = Shards.of(runs, folder, on=on_of(prepared.model))
        return None if shards is None else cls(request, prepared, shards, reporter)

    def claim(self) -> str | None:
        """Claim a shard; ``None`` while others are at all of them."""
        lacking = self.shards.lacking()
        return self.shards.runs.claim(lacking, holder=self.reporter.rq_id) if lacking else None

    def take(self, name: str, folder: Path) -> None:
        """Measure a shard that was claimed, and keep what it came to."""
        model, reporter = self.prepared.model, self.reporter
        reporter.trace.note(shard=name)
        reporter.trace.enter_stage(Stage.CALIBRATING)
        head = JobHead(model, None, reporter, self.shards.head)
        progress = MeasurementProgress(
            self.shards.folder, reporter.attempt, model.request.digest, lambda *_: None
        )
        sums = measure_shard(
            self.request,
            model,
            self.prepared.batches,
            reporter,
            self.shards.by_name[name],
            folder=folder,
            progress=progress,
            part=Part(0, 0, head, begin=_nothing),
            on_batch=self._noting(name),
        )
        self.shards.keep(name, sums, holder=reporter.rq_id)

    def _noting(self, name: str) -> Callable[[int, int], None]:
        noted = float("-inf")

        def on_batch(done: int, expected: int) -> None:
            nonlocal noted
            self.reporter.on_batch(done, expected)
            if time.monotonic() - noted >= NOTE_S:
                noted = time.monotonic()
                self.shards.runs.note(name, done)

        return on_batch


def request_of(record: JobRecord) -> CalibrationRequest:
    """What a job that measures asks for."""
    if record.kind is JobKind.COMPARISON:
        return ComparisonRequest.model_validate(record.request)
    return CalibrationRequest.model_validate(record.request)
