"""Measure a job's base model where it fits: loaded, or streamed from its folder."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from fimlora import ProgressFile, Settings, Statistics, measure_streamed
from fimlora.adapter.initial.registry import init_records
from fimlora.measuring.executors import boundary_limit, measure_where_it_fits, parse_executor
from fimlora.measuring.head.fitted import FittedHead, left_alone, with_head
from fimlora.measuring.resident import measure_resident, measure_resident_shard
from fimlora.measuring.resume.merge import Shard, ShardSums
from fimlora.measuring.settings import OnBatch
from fimlora.measuring.streamed.run import measure_streamed_shard
from fimlora.memory.device import reset_peak
from fimlora.memory.need import MemoryNeed, bytes_recorded
from fimlora.memory.out_of_memory import is_out_of_memory
from fimlora.methods.registry import (
    needs_null,
    passes_needed,
    records_needed,
)
from fimlora.statistics.options import Estimator, Executor, Passes, Record
from fimlora_contract.jobs import Stage
from fimlora_contract.requests import CalibrationRequest
from fimlora_worker.inputs.base_model import BaseModel
from fimlora_worker.inputs.calibration_data import HeadBatches, PaddedBatches
from fimlora_worker.inputs.trained_adapter import TrainedPoint
from fimlora_worker.job.head import JobHead
from fimlora_worker.job.measurement_progress import MeasurementProgress
from fimlora_worker.job.memory_ladder import asked, less_than, streamed_for_memory
from fimlora_worker.job.progress import Reporter
from fimlora_worker.job.solving import check_feasible


@dataclass(frozen=True, slots=True)
class Part:
    """Which of a job's batches are measured at once, where that is not all.

    Attributes:
        start: Batches before these.
        first_example: Examples before these.
        head: What their head is fitted by, so that all parts have one.
        executor: What an earlier part was measured by in this attempt; ``None`` for the first.
        estimator: What earlier parts were measured by, where the choice was ours: one for all.
        after: Batches after these.
        is_retained: Whether these are rows to retain, of which less is recorded.
        begin: Called when measuring begins, in place of telling the reporter.
    """

    start: int
    first_example: int
    head: JobHead
    executor: Executor | None = None
    estimator: str | None = None
    after: int = 0
    is_retained: bool = False
    begin: Callable[[], None] | None = None

    def total(self, n_batches: int) -> int:
        """Batches of the whole job, if these are so many."""
        return self.start + n_batches + self.after


def measure_model(
    request: CalibrationRequest,
    model: BaseModel,
    batches: PaddedBatches,
    reporter: Reporter,
    *,
    folder: Path,
    progress: MeasurementProgress,
    head_batches: HeadBatches | None = None,
    memory_kills: tuple[str, ...] = (),
    part: Part | None = None,
    point: TrainedPoint | None = None,
    shards: Sequence[ShardSums] = (),
) -> Statistics:
    """Measure by the executor of the request, from where an earlier attempt was.

    After a kill for want of memory it asks for less; see `fimlora_worker.job.memory_ladder`.

    Args:
        request: The request.
        model: Its base model.
        batches: Its examples.
        reporter: Told about every batch.
        folder: For what a streamed model keeps on disk meanwhile.
        progress: What earlier attempts have saved.
        head_batches: What its head is fitted on; ``None`` where that stays as it is.
        memory_kills: What attempts asked for that the system has ended for want of memory.
        part: Which of the job's batches these are; ``None`` for all.
        point: A trained adapter to measure at.
        shards: What shards of it came to: they are put together, and no batch is run.

    Returns:
        The statistics; they say how they were measured.

    Raises:
        UnknownTarget: A name of a target is none of the model's; no weight has been read then.
        InfeasibleBudget: The budget cannot be met by these targets; nor then.
        InvalidOption: The initial weights cannot fill the ranks it may come to; nor then.
        OutOfMemory: It does not fit, or nothing less is left to ask for.
    """
    part = part or Part(0, 0, JobHead(model, head_batches, reporter))
    found = _measure(
        request, model, batches, reporter, part, folder, progress, head_batches, memory_kills,
        point, shards=shards,
    )  # fmt: skip
    assert isinstance(found, Statistics)
    return found


def measure_shard(
    request: CalibrationRequest,
    model: BaseModel,
    batches: PaddedBatches,
    reporter: Reporter,
    shard: Shard,
    *,
    folder: Path,
    progress: MeasurementProgress,
    part: Part,
    on_batch: OnBatch,
    head_batches: HeadBatches | None = None,
    memory_kills: tuple[str, ...] = (),
) -> ShardSums:
    """Measure some of the batches, for whoever puts them together; see `measure_model`.

    Args:
        request: The request.
        model: Its base model.
        batches: All of its examples.
        reporter: Told of every stage.
        shard: Which batches.
        folder: For what a streamed model keeps on disk meanwhile.
        progress: What earlier attempts have saved.
        part: The head that all shards have, and how those before were measured.
        on_batch: Told of every batch of the shard.
        head_batches: What the head is fitted on, where it is fitted here.
        memory_kills: What attempts asked for that the system has ended for want of memory.

    Returns:
        The sums.
    """
    found = _measure(
        request, model, batches, reporter, part, folder, progress, head_batches, memory_kills,
        shard=shard, on_batch=on_batch,
    )  # fmt: skip
    assert isinstance(found, ShardSums)
    return found


def _measure(
    request: CalibrationRequest,
    model: BaseModel,
    batches: PaddedBatches,
    reporter: Reporter,
    part: Part,
    folder: Path,
    progress: MeasurementProgress,
    head_batches: HeadBatches | None,
    memory_kills: tuple[str, ...],
    point: TrainedPoint | None = None,
    *,
    shard: Shard | None = None,
    shards: Sequence[ShardSums] = (),
    on_batch: OnBatch | None = None,
) -> Statistics | ShardSums:
    settings = _chosen(request, model, batches, reporter, part, point)
    settings = replace(settings, shards=shards, on_batch=on_batch or settings.on_batch)
    assert settings.choice
    modules = settings.choice.modules
    if point is not None:
        point.check_measured({m.name for m in modules}, settings.choice.not_targeted)
    check_feasible(request, model.outline(), modules, settings.choice.not_targeted)
    executor, largest = less_than(
        memory_kills, _executor(request, part, point), largest=batches.largest
    )
    attempt = _Attempt(settings, model, batches, part, reporter, folder, progress, point, shard)
    width = max(batches.width, head_batches.width if head_batches else 0)
    reset_peak(model.device)
    with streamed_for_memory(memory_kills, executor):
        return measure_where_it_fits(
            executor,
            device=model.device,
            need=_need(model, settings, width=width, point=point),
            largest_batch=largest,
            resident=attempt.resident,
            streamed=attempt.streamed,
        )


def _chosen(
    request: CalibrationRequest,
    model: BaseModel,
    batches: PaddedBatches,
    reporter: Reporter,
    part: Part,
    point: TrainedPoint | None,
) -> Settings:
    """Say what is measured, and of which modules."""
    settings = _settings(request, batches, reporter, part).without(model.drawn)
    if point is not None:
        point.check_fits(model.outline(), drawn=model.drawn)
        record = {*settings.record, Record.ADAPTER_GRADIENTS}
        settings = replace(settings, target_modules=[*point.ranks], record=record)
    # Once, as PEFT tries the targets out, which takes a while with thousands of them.
    choice = settings.choose(model.outline())
    return replace(settings, choice=choice)


def _executor(request: CalibrationRequest, part: Part, point: TrainedPoint | None) -> Executor:
    """Say how it is to be measured, if there is room."""
    if point is not None:
        return Executor.RESIDENT  # blocks of a checkpoint carry no adapter
    if part.executor is Executor.STREAMED:
        return Executor.STREAMED  # what did not fit before does not fit now
    return parse_executor(request.calibration.executor)


def _need(
    model: BaseModel, settings: Settings, *, width: int, point: TrainedPoint | None
) -> MemoryNeed:
    """Say what the loaded model would need."""
    assert settings.choice
    recorded_bytes = bytes_recorded(
        settings.choice.modules,
        settings.record,
        null=settings.null,
        halves=settings.halves,
        adapter_ranks=point.ranks if point else None,
    )
    return model.need(n_tokens=width, recorded_bytes=recorded_bytes, passes=settings.passes)


@dataclass(frozen=True, slots=True)
class _Attempt:
    """What both executors need of a job."""

    settings: Settings
    model: BaseModel
    batches: PaddedBatches
    part: Part
    reporter: Reporter
    folder: Path
    progress: MeasurementProgress
    point: TrainedPoint | None = None
    shard: Shard | None = None

    def resident(self, size: int) -> Statistics | ShardSums:
        """Measure the loaded model, so many examples at a time."""
        try:
            self._ask(Executor.RESIDENT, size)
            loaded = self.model.load()
            head = self._head(loaded, size)
            self._begin()
            on_point = self.point.on(loaded, self.model) if self.point else nullcontext(loaded)
            with with_head(loaded, head.weights), on_point as acting:
                found = self._go_on(
                    Executor.RESIDENT,
                    size,
                    lambda settings: (
                        measure_resident(acting, self.batches, settings)
                        if self.shard is None
                        else measure_resident_shard(acting, self.batches, settings, self.shard)
                    ),
                )
            return head.stated_in(found) if isinstance(found, Statistics) else found
        except Exception as error:
            if is_out_of_memory(error):
                self.model.unload()  # what is streamed instead needs the memory
            raise

    def streamed(self, size: int) -> Statistics | ShardSums:
        """Measure the model from its folder, block by block."""
        self._ask(Executor.STREAMED, size)
        self.model.unload()  # an earlier job may have left it loaded
        head = self.part.head.streamed(size)
        self._begin()
        given: dict[str, Any] = {
            "max_boundary_bytes": boundary_limit(),
            "boundary_folder": self.folder,
            "head_weights": head.weights,
            **self.model.streaming_options(),
        }
        where = self.model.folder, self.batches
        found = self._go_on(
            Executor.STREAMED,
            size,
            lambda settings: (
                measure_streamed(*where, settings, **given)
                if self.shard is None
                else measure_streamed_shard(*where, settings, self.shard, **given)
            ),
        )
        return head.stated_in(found) if isinstance(found, Statistics) else found

    def _go_on(
        self,
        executor: Executor,
        size: int,
        measure: Callable[[Settings], Statistics | ShardSums],
    ) -> Statistics | ShardSums:
        """Measure from where an earlier attempt was; shards are just put together."""
        if self.settings.shards:
            return measure(self._with(size, None))
        return self.progress.go_on(
            self._file_name(executor), lambda file: measure(self._with(size, file))
        )

    def _ask(self, executor: Executor, size: int) -> None:
        """Put on record what is about to be taken: should it be too much, nobody else can say."""
        self.reporter.note_memory(asked(executor, size))

    def _head(self, loaded: nn.Module, size: int) -> FittedHead:
        """The head that is measured under; that of an adapter comes with it."""
        if self.point is None:
            return self.part.head.resident(loaded, size)
        return left_alone("adapter" if self.model.has_drawn_head else "pretrained", ())

    def _begin(self) -> None:
        if self.part.begin is not None:
            self.part.begin()
            return
        start, total = self.part.start, self.part.total(len(self.batches))
        if self.part.executor is None:
            self.reporter.enter(Stage.CALIBRATING, n_batches=total)
            if start:
                self.reporter.on_resume(start, total)

    def _file_name(self, executor: Executor) -> str:
        """What the sums of these batches are kept by; those of no other part go on from them."""
        if self.shard is not None:
            return f"{executor}.shard.{self.shard.start}.{self.shard.stop}"
        return f"{executor}.{self.part.start}" if self.part.start else executor

    def _with(self, size: int, file: ProgressFile | None) -> Settings:
        return replace(self.settings, micro_batch_size=size, progress_file=file)


def _settings(
    request: CalibrationRequest, batches: PaddedBatches, reporter: Reporter, part: Part
) -> Settings:
    """Say what a request measures."""
    calibration = request.calibration

    def on_batch(done: int, expected: int) -> None:
        reporter.on_batch(part.start + done, part.total(expected))

    methods = () if part.is_retained else request.methods_measured
    goes_back = part.is_retained or passes_needed(*methods) is Passes.BACKWARD
    of_init = set[Record]() if part.is_retained else init_records(request.adapter.initial)
    return Settings(
        target_modules=request.target_modules,
        exclude_modules=request.exclude_modules,
        target_parameters=request.target_parameters,
        modules_to_save=request.modules_to_save,
        n_batches=len(batches),
        estimator=part.estimator or (calibration.estimator if goes_back else Estimator.NONE),
        seed=calibration.seed,
        scale=request.adapter.scale,
        record=records_needed(*methods) | of_init,
        null=not part.is_retained
        and ((goes_back and request.measures_signal) or needs_null(*methods)),
        halves=request.measures_signal,
        on_batch=on_batch,
        first_example=part.first_example,
    )
