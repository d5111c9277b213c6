"""The attempt that leads the shards of its job, as one leads the runs of an evaluation.

It says which shards there are, measures some itself, asks other workers for hands, and puts
together what all came to.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fimlora import Statistics
from fimlora.errors import InvalidProgress
from fimlora.measuring.head.fitted import FittedHead
from fimlora.measuring.resume.merge import Shard, ShardSums, split
from fimlora.statistics.options import Executor
from fimlora_contract.jobs import ShardProgress, Stage
from fimlora_contract.requests import CalibrationRequest
from fimlora_jobs.runs import Runs
from fimlora_worker.inputs.base_model import BaseModel
from fimlora_worker.inputs.calibration_data import HeadBatches, PaddedBatches
from fimlora_worker.job.head import JobHead
from fimlora_worker.job.measurement_progress import MeasurementProgress
from fimlora_worker.job.measuring import Part, measure_model, measure_shard
from fimlora_worker.job.progress import Reporter
from fimlora_worker.job.shards import Shards, n_others, on_of
from fimlora_worker.job.worker_process import WorkerProcess

log = logging.getLogger(__name__)
# Between two looks whether others are done, once there is nothing left to measure here.
POLL_S = 0.1
# Between two looks at what other workers are at.
LOOK_S = 2.0
MOST_FAILED_HANDS = 3
# How often the sums of one shard may turn out to be of no use.
MOST_SET_ASIDE = 3


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
    lead = Lead(shards, reporter, process, model)
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

    while True:
        sums = lead.measure_all(measure)
        part = Part(0, 0, head, executor=lead.executor, begin=lead.begin)
        try:
            return measure_model(
                request, model, batches, reporter, part=part, shards=sums, **given
            )
        except InvalidProgress as refused:
            lead.set_aside(refused)


@dataclass
class Lead:
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
    _own_sums: set[str] = field(default_factory=set, init=False)
    _n_set_aside: Counter[str] = field(default_factory=Counter, init=False)
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
        self._looked = float("-inf")  # hands are asked for at once

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

    def set_aside(self, refused: InvalidProgress) -> None:
        """Measure a shard anew, and here, whose sums are of another run or gone.

        Args:
            refused: Says which, and what differs.

        Raises:
            InvalidProgress: It would be the same again.
        """
        names = {(each.start, each.stop): name for name, each in self.shards.by_name.items()}
        name = names.get(refused.batches or (0, 0))
        is_the_same_again = refused.field is not None and name in self._own_sums
        if name is None or is_the_same_again or self._n_set_aside[name] == MOST_SET_ASIDE:
            self.shards.forget()  # or the next attempt would find the same
            raise refused
        log.warning("shard.set_aside", extra={"shard": name, "error": str(refused)})
        self.reporter.trace.event("shard set aside", shard=name, differs=refused.field)
        self._n_set_aside[name] += 1
        self.shards.runs.discard(name)

    def _take(
        self, name: str, shard: Shard, measure: Callable[[str, Shard], ShardSums]
    ) -> None:
        try:
            self._tell()
            sums = measure(name, shard)
            self.shards.keep(name, sums, holder=self.reporter.rq_id)
            self._own_sums.add(name)
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
