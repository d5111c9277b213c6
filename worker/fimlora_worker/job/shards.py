"""The batches of a job shared between workers: shards, each measured by whoever is free.

The attempt leads, as of an evaluation: it says which shards there are, measures some itself, asks
other workers for hands, and puts together what all came to. A shard's sums lie in a file of the
job's folder, and its claim and the file's name in Redis, so that a worker that is lost costs one
shard, and that one goes on from its own saved sums.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fimlora import Statistics
from fimlora import __version__ as engine_version
from fimlora.adapter.initial.registry import init_records
from fimlora.errors import InvalidOption, InvalidProgress
from fimlora.measuring.head.fitted import FittedHead
from fimlora.measuring.resume.merge import Shard, ShardSums, split
from fimlora.measuring.resume.tensor_file import read_tensors, write_tensors
from fimlora.memory.need import SPECTRA_BYTES, WHOLE_RECORDS
from fimlora.memory.out_of_memory import format_bytes
from fimlora.methods.registry import passes_needed, records_needed
from fimlora.statistics.options import Executor, Passes
from fimlora_contract.jobs import ShardProgress, Stage
from fimlora_contract.requests import MOST_SHARDS, CalibrationRequest
from fimlora_jobs.runs import Runs
from fimlora_jobs.workers import WorkerRegistry
from fimlora_worker.inputs.base_model import BaseModel
from fimlora_worker.inputs.calibration_data import HeadBatches, PaddedBatches
from fimlora_worker.job.head import JobHead
from fimlora_worker.job.measurement_progress import MeasurementProgress
from fimlora_worker.job.measuring import Part, measure_model, measure_shard
from fimlora_worker.job.progress import Reporter
from fimlora_worker.job.worker_process import WorkerProcess

log = logging.getLogger(__name__)
POLL_S = 0.5
# Between two looks at what other workers are at.
LOOK_S = 2.0
MOST_FAILED_HANDS = 3
HEAD = "shards.head"


def n_shards_of(
    request: CalibrationRequest,
    model: BaseModel,
    n_batches: int,
    process: WorkerProcess,
    *,
    whole_bytes: int = SPECTRA_BYTES,
) -> int:
    """Say in how many parts a job's batches are measured.

    Args:
        request: The request.
        model: Its base model.
        n_batches: Batches that there are, which may be fewer than were asked for.
        process: Knows the workers.
        whole_bytes: Arrays as large as the weights may take so much in a shard.

    Returns:
        The number.

    Raises:
        InvalidOption: A number was given, and each shard would hold too much.
    """
    wanted, is_read = request.calibration.shards, passes_needed(*request.methods_measured)
    if wanted == 1 or is_read is Passes.NONE or request.why_not_in_shards is not None:
        return 1
    if too_large := _too_large(request, model, whole_bytes):
        if wanted == "auto":
            return 1
        raise InvalidOption(f"calibration.shards={wanted}: {too_large}; leave shards out")
    if wanted == "auto":
        return min(MOST_SHARDS, 1 + n_others(model.device.type, process), n_batches)
    return min(wanted, n_batches)


def _too_large(request: CalibrationRequest, model: BaseModel, whole_bytes: int) -> str | None:
    """Say what of a large model no shard may hold whole, where one run takes block after block."""
    records = records_needed(*request.methods_measured) | init_records(request.adapter.initial)
    whole = sorted(records & WHOLE_RECORDS)
    if not whole:
        return None
    n_bytes = 4 * sum(parameter.numel() for parameter in model.outline().parameters())
    if n_bytes <= whole_bytes:
        return None
    return (
        f"{whole[0].value!r} is summed in an array as large as each weight, {format_bytes(n_bytes)} "
        f"for all of this model, and a shard may hold {format_bytes(whole_bytes)} of them"
    )


def n_others(device: str, process: WorkerProcess) -> int:
    """How many other workers there are on this kind of device."""
    living = WorkerRegistry(process.store).living()
    return max(0, sum(worker.device == device for worker in living) - 1)


def on_of(model: BaseModel) -> str:
    """On what shards are measured: elsewhere, or by another version, they come to other sums."""
    return f"{model.request.device} {model.request.dtype} {engine_version}"


@dataclass(frozen=True, slots=True)
class Shards:
    """What is known of a job's shards, by whoever leads and by every hand.

    Attributes:
        runs: Who is at them, and which are finished.
        folder: The job's own; every worker that helps sees it.
        all: The shards.
        head: What they are measured under, where that was fitted.
    """

    runs: Runs
    folder: Path
    all: tuple[Shard, ...]
    head: FittedHead | None = None

    @classmethod
    def of(cls, runs: Runs, folder: Path, *, on: str) -> "Shards | None":
        """Find what is on record.

        Returns:
            It; ``None`` where nobody leads on such a device, or its folder is not this one.
        """
        known = runs.prepared()
        if known is None or runs.prepared_on() != on or not (folder / HEAD).exists():
            return None
        try:
            weights, facts = read_tensors(folder / HEAD)
        except (OSError, ValueError) as error:
            log.warning("shards.head_unreadable", extra={"error": str(error)})
            return None
        head = None if facts["head"] is None else FittedHead(weights, facts["head"])
        found = tuple(Shard(*each) for each in known["shards"])
        return cls(replace(runs, on=on), folder, found, head)

    def publish(self, *, on: str) -> None:
        """Put on record what every worker needs to measure any shard."""
        self.folder.mkdir(parents=True, exist_ok=True)
        facts = None if self.head is None else dict(self.head.facts)
        write_tensors(
            self.folder / HEAD, self.head.weights if self.head else {}, {"head": facts}
        )
        self.runs.prepare({"shards": [[each.start, each.stop] for each in self.all]}, on=on)

    def lacking(self) -> list[str]:
        """Shards that nobody has finished, by their names."""
        done = self.runs.results()
        return [name for name in self.by_name if name not in done]

    @property
    def by_name(self) -> dict[str, Shard]:
        """Shards by what they are called in Redis."""
        return {f"{each.start}-{each.stop}": each for each in self.all}

    def keep(self, name: str, sums: ShardSums, *, holder: str) -> None:
        """Keep what a shard came to; the first one counts, and equal ones may follow."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"shard.{name}.{holder}"
        sums.save(path)
        is_new = self.runs.keep(name, {"file": path.name})
        if not is_new:  # somebody was taken for dead, and was not
            path.unlink(missing_ok=True)
        log.info(
            "shard.kept",
            extra={"job_id": self.runs.job_id, "shard": name, "is_new": is_new},
        )

    def load(self) -> list[ShardSums] | None:
        """Read what all came to; ``None`` where one is gone, which is anybody's again then."""
        found = []
        results = self.runs.results()
        for name in self.by_name:
            try:
                file = str(results[name]["file"])
                found.append(ShardSums.load(self.folder / Path(file).name))
            except (InvalidProgress, KeyError) as error:
                log.warning("shard.gone", extra={"shard": name, "error": str(error)})
                self.runs.discard(name)
        return found if len(found) == len(self.all) else None

    def forget(self) -> None:
        """Forget what all came to."""
        for name in self.by_name:
            self.runs.discard(name)


def measure_in_shards(
    request: CalibrationRequest,
    model: BaseModel,
    batches: PaddedBatches,
    reporter: Reporter,
    process: WorkerProcess,
    n_shards: int,
    *,
    folder: Path,
    progress: MeasurementProgress,
    head_batches: HeadBatches | None = None,
    memory_kills: tuple[str, ...] = (),
) -> Statistics:
    """Measure a job's batches together with other workers; see `measure_model`.

    Args:
        request: The request.
        model: Its base model.
        batches: Its examples.
        reporter: Told about every batch, whoever has measured it.
        process: Asks other workers.
        n_shards: In how many parts.
        folder: For what a streamed model keeps on disk meanwhile.
        progress: What earlier attempts have saved.
        head_batches: What its head is fitted on; ``None`` where that stays as it is.
        memory_kills: What attempts asked for that the system has ended for want of memory.

    Returns:
        The statistics; they say in how many parts they were measured.
    """
    runs = Runs(process.store, reporter.job_id, on=on_of(model))
    shards = Shards.of(runs, progress.folder, on=runs.on)
    if shards is None or shards.all[-1].stop != len(batches):
        shards = Shards(runs, progress.folder, split(len(batches), n_shards))
        shards.forget()  # what there may be is of other sums
    lead = _Lead(shards, reporter, process, model)
    head = JobHead(model, head_batches, reporter, shards.head, on_found=lead.take_head)
    if head.found is not None or head_batches is None:
        lead.take_head(head.found)
    given: dict[str, Any] = {
        "folder": folder,
        "progress": replace(progress, on_resume=lead.on_resume),
        "head_batches": head_batches,
        "memory_kills": memory_kills,
    }

    def measure(name: str, shard: Shard) -> ShardSums:
        part = Part(0, 0, head, executor=lead.executor, begin=lead.begin)
        return measure_shard(
            request, model, batches, reporter, shard, part=part, on_batch=lead.of(name), **given
        )

    sums = lead.measure_all(measure)
    part = Part(0, 0, head, executor=lead.executor, begin=lead.begin)
    try:
        return measure_model(request, model, batches, reporter, part=part, shards=sums, **given)
    except InvalidProgress:
        lead.shards.forget()  # or the next attempt would find the same
        raise


@dataclass
class _Lead:
    """Measures what nobody else does, and knows how far all are.

    Attributes:
        shards: The shards.
        reporter: Told of them.
        process: Asks other workers.
        model: The base model.
        sleep: Waits some seconds.
        clock: Seconds of a monotonic clock.
        executor: How a shard was measured last, if that was not as was asked for.
    """

    shards: Shards
    reporter: Reporter
    process: WorkerProcess
    model: BaseModel
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    executor: Executor | None = None
    _own: dict[str, int] = field(default_factory=dict, init=False)
    _others: dict[str, int] = field(default_factory=dict, init=False)
    _done: set[str] = field(default_factory=set, init=False)
    _claimed: frozenset[str] = field(default=frozenset(), init=False)
    _looked: float = field(default=float("-inf"), init=False)
    _is_ready: bool = field(default=False, init=False)
    _has_begun: bool = field(default=False, init=False)

    @property
    def n_batches(self) -> int:
        """Batches of all shards."""
        return self.shards.all[-1].stop

    def take_head(self, head: FittedHead | None) -> None:
        """Let others begin, now that there is what they are to be measured under."""
        self.shards = replace(self.shards, head=head)
        self.shards.publish(on=self.shards.runs.on)
        self._is_ready, self._has_begun = True, False

    def begin(self) -> None:
        """Enter the stage, once."""
        if not self._has_begun:
            self._has_begun = True
            self.reporter.enter(Stage.CALIBRATING, n_batches=self.n_batches)

    def on_resume(self, done: int, expected: int) -> None:
        """Note that a shard goes on from saved sums."""
        log.info("shard.resumed", extra={"batch": done, "n_batches": expected})
        self.reporter.trace.event("resumed", batch=done, n_batches=expected)

    def of(self, name: str) -> Callable[[int, int], None]:
        """Note batches of a shard that is measured here."""

        def on_batch(done: int, _expected: int) -> None:
            self._own[name] = done
            self._tell()

        return on_batch

    def measure_all(self, measure: Callable[[str, Shard], ShardSums]) -> list[ShardSums]:
        """Measure until every shard is finished, whoever does it.

        Args:
            measure: Measures one of them here.

        Returns:
            What they came to.
        """
        by_name = self.shards.by_name
        while True:
            if not (lacking := self._lacking()):
                self._tell()  # that all are done
                if (found := self.shards.load()) is not None:
                    if any(each.executor == Executor.STREAMED for each in found):
                        self.executor = Executor.STREAMED
                    return found
                continue
            name = self.shards.runs.claim(lacking, holder=self.reporter.rq_id)
            if name is None:
                self.begin()
                self._tell()
                self.sleep(POLL_S)
                continue
            self._take(name, by_name[name], measure)

    def _take(
        self, name: str, shard: Shard, measure: Callable[[str, Shard], ShardSums]
    ) -> None:
        try:
            self._tell()
            sums = measure(name, shard)
            self.shards.keep(name, sums, holder=self.reporter.rq_id)
        except BaseException:
            self.shards.runs.release(self.reporter.rq_id)  # anybody may begin it anew at once
            raise
        if sums.executor == Executor.STREAMED:
            self.executor = Executor.STREAMED

    def _lacking(self) -> Sequence[str]:
        lacking = self.shards.lacking()
        self._done = {*self.shards.by_name} - {*lacking}
        return lacking

    def _tell(self) -> None:
        """Look what others are at, and report; cheap to call at every batch."""
        if self.clock() - self._looked >= LOOK_S:
            self._looked = self.clock()
            lacking = self._lacking()
            self._claimed = frozenset(self.shards.runs.claimed())
            self._others = self.shards.runs.noted()
            self._ask_for_hands(len({*lacking} - self._claimed))
        if not self._has_begun:
            self.reporter.keep_alive()
            return
        sizes = {name: each.stop - each.start for name, each in self.shards.by_name.items()}
        done = sum(
            size if name in self._done else min(size, self._at(name))
            for name, size in sizes.items()
        )
        figures = ShardProgress(
            done=len(self._done), n_shards=len(sizes), at_once=max(1, len(self._claimed))
        )
        self.reporter.on_shards(figures, done, self.n_batches)

    def _at(self, name: str) -> int:
        return max(self._own.get(name, 0), self._others.get(name, 0))

    def _ask_for_hands(self, n_free: int) -> None:
        """Queue as many hands as there are shards for, and other workers to lend one."""
        if not self._is_ready or self.shards.runs.failed_hands() >= MOST_FAILED_HANDS:
            return
        wanted = min(n_free, n_others(self.model.device.type, self.process))
        if wanted > 0:
            transport, job_id = self.process.transport, self.shards.runs.job_id
            for _ in range(wanted - transport.waiting_hands(job_id)):
                transport.enqueue_hand(job_id)
