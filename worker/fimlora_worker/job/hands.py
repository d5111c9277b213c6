"""The task by which another worker helps with a job: it trains one run, or measures one shard.

One and no more, so that whoever waits in the queue goes before the next; the attempt that leads
asks again for as long as there are any. Nothing of a hand is on the job's record but the result
of its run: one that dies, or is not wanted any more, leaves the run to others.
"""

import logging
from contextlib import suppress
from dataclasses import dataclass, replace

from fimlora_contract.jobs import JobKind, JobStatus, Progress
from fimlora_jobs.reader import JobMissing
from fimlora_jobs.record import JobRecord
from fimlora_jobs.runs import Runs
from fimlora_worker.errors import Abort, CancelRequested
from fimlora_worker.inputs.device import choose_device
from fimlora_worker.job.failures import describe_away, is_broken_device, is_storage_away
from fimlora_worker.job.progress import Reporter
from fimlora_worker.job.storage import is_usable, wait_for_storage
from fimlora_worker.job.work_folders import work_folder
from fimlora_worker.job.worker_process import WorkerProcess, process_for
from fimlora_worker.settings import Settings

log = logging.getLogger(__name__)
N_BEFORE = 3  # nobody counts for how long a hand has waited before
OTHER_DEVICE = "other device"
OTHER_PLACE = "other version, dtype or data folder"
WANTED = frozenset({JobStatus.QUEUED, JobStatus.RUNNING})


@dataclass
class HandReporter(Reporter):
    """Speaks for a hand: nothing goes on the job's record, and the same things end it."""

    hand_id: str = ""

    @property
    def rq_id(self) -> str:
        """Id of the RQ job that this speaks for."""
        return self.hand_id

    def note_memory(self, asked: str) -> None:
        """Nothing: a hand that dies costs its job no attempt."""

    def _send(self, progress: Progress) -> None:
        self._reported, self._last = self.clock(), progress
        self._ask()

    def _ask(self) -> None:
        self.on_alive()
        self._asked = self.clock()
        Runs(self.store, self.job_id).hold(self.hand_id)
        if self.store.status_of(self.job_id) not in WANTED:
            raise CancelRequested(f"{self.job_id} needs no hand any more")


def lend_hand(job_id: str, hand_id: str) -> str:
    """Take one run or shard of a job, if there is one left; the answer is for the operator.

    Raises:
        Exception: What ended the run; the attempt that leads comes to it itself.
    """
    process = process_for(Settings())
    try:
        record = process.store.get(job_id)
    except JobMissing:
        return "gone"
    runs = Runs(process.store, job_id)
    if record.status is not JobStatus.RUNNING:
        return "not wanted"
    if runs.prepared() is None:
        return "not ready"
    process.wait_for_imports()
    with process.tracing.hand(record.traceparent, job_id=job_id, worker=process.name) as trace:
        reporter = HandReporter(
            process.store,
            job_id,
            record.attempt,
            is_draining=lambda: process.is_draining,
            on_alive=process.on_alive,
            deadline_s=process.settings.job_deadline_s,
            trace=trace,
            hand_id=hand_id,
        )
        end = _lend(record, runs, process, reporter)
        trace.note(end=end)
    return end


def _lend(record: JobRecord, runs: Runs, process: WorkerProcess, reporter: Reporter) -> str:
    try:
        take = _train if record.kind is JobKind.EVALUATION else _measure
        end = take(record, runs, process, reporter)
    except (Abort, JobMissing) as reason:
        log.info("hand.ended", extra={"rq_id": reporter.rq_id, "reason": str(reason)})
        return "ended"
    except Exception as error:
        if is_storage_away(error):
            log.warning("hand.storage_unavailable", exc_info=True)
            runs.release(reporter.rq_id)  # others need not wait for what this one does not do
            return _stand_back(process, reporter, error)
        process.must_retire |= is_broken_device(error)
        runs.note_failed_hand()
        raise
    finally:
        runs.release(reporter.rq_id)
    return end


def _stand_back(process: WorkerProcess, reporter: Reporter, error: Exception) -> str:
    """Wait a while before another hand is lent; what storage refused is nobody's failure."""
    reason = describe_away(error, data_dir=process.settings.data_dir)
    with suppress(Abort, JobMissing):
        wait_for_storage(
            n_before=N_BEFORE,
            is_usable=lambda: is_usable(process.settings.tmp_dir, process.artifacts),
            on_wait=lambda: reporter.wait_for(reason),
        )
    return "storage refused"


def _train(record: JobRecord, runs: Runs, process: WorkerProcess, reporter: Reporter) -> str:
    from fimlora_worker.job.evaluation import prepare_evaluation
    from fimlora_worker.job.evaluation_runs import RunTaker

    if _device_of(process) != (runs.prepared_on() or "").partition(" ")[0]:
        return OTHER_DEVICE
    prepared = prepare_evaluation(record, runs, process, reporter)
    if prepared.on != runs.prepared_on():
        return OTHER_DEVICE
    taker = RunTaker(replace(runs, on=prepared.on), prepared.ground.settings, reporter)
    lacking = taker.lacking()
    spec = taker.claim(lacking)
    if spec is None:
        return "nothing left"
    with work_folder(process.settings.tmp_dir, reporter.rq_id) as folder:
        taker.take(spec, lacking, prepared.task, folder)
    return "trained"


def _measure(record: JobRecord, runs: Runs, process: WorkerProcess, reporter: Reporter) -> str:
    from fimlora_worker.job.shard_hand import ShardHand
    from fimlora_worker.job.shards import is_measured_here

    on, device = runs.prepared_on() or "", _device_of(process)
    if not is_measured_here(on, device=device):
        return OTHER_DEVICE if device != on.partition(" ")[0] else OTHER_PLACE
    hand = ShardHand.of(record, runs, process, reporter)
    if hand is None:
        return OTHER_PLACE
    name = hand.claim()
    if name is None:
        return "nothing left"
    with work_folder(process.settings.tmp_dir, reporter.rq_id) as folder:
        hand.take(name, folder)
    return "measured"


def _device_of(process: WorkerProcess) -> str:
    settings = process.settings
    return choose_device(
        settings.device, lock=process.device_lock, visible=settings.cuda_visible_devices
    )
