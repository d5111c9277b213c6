"""Measure a job's dataset and then the one whose function is to be kept, under one head.

The statistics of the dataset lie beside the sums of the rows to retain until these are done, so
that an attempt that is lost among the second ones measures none of the first anew.
"""

from dataclasses import replace
from pathlib import Path

from fimlora import Statistics
from fimlora.measuring.head.fitted import head_of
from fimlora_contract.requests import CalibrationRequest
from fimlora_worker.job.head import JobHead
from fimlora_worker.job.measurement_progress import MeasurementProgress
from fimlora_worker.job.measuring import Part, measure_model
from fimlora_worker.job.preparation import Prepared
from fimlora_worker.job.progress import Reporter
from fimlora_worker.job.rounds import KeptRounds, begun_or_anew


def measure_contrast(
    request: CalibrationRequest,
    prepared: Prepared,
    reporter: Reporter,
    *,
    folder: Path,
    progress: MeasurementProgress,
    memory_kills: tuple[str, ...] = (),
) -> Statistics:
    """Measure both, from where an earlier attempt was; see `measure_model`.

    Args:
        request: The request.
        prepared: Its model and the examples of both.
        reporter: Told about every batch, as of one run over both.
        folder: For what a streamed model keeps on disk meanwhile.
        progress: What earlier attempts have saved.
        memory_kills: What attempts asked for that the system has ended for want of memory.

    Returns:
        The statistics of the dataset with those of the rows to retain.
    """
    retained = prepared.retain_batches
    assert retained is not None, "asked for without rows to retain"
    kept, model, n_first = KeptRounds(progress.folder), prepared.model, len(prepared.batches)
    head = JobHead(model, prepared.head_batches, reporter)

    def on_resume(done: int, _: int) -> None:
        reporter.on_resume(n_first + done, n_first + len(retained))

    def first() -> Statistics:
        found = measure_model(
            request,
            model,
            prepared.batches,
            reporter,
            folder=folder,
            progress=replace(progress, on_resume=lambda n, _: reporter.on_resume(n, n_all)),
            head_batches=prepared.head_batches,
            memory_kills=memory_kills,
            part=Part(0, 0, head, after=len(retained)),
        )
        kept.keep(found, n_first)
        return found

    def both(begun: tuple[Statistics, int] | None) -> Statistics:
        found = begun[0] if begun else first()
        head.found = head_of(found)
        execution = found.execution
        part = Part(
            n_first,
            0,
            head,
            execution.executor if execution else None,
            found.estimator.value,
            is_retained=True,
        )
        other = measure_model(
            request,
            model,
            retained,
            reporter,
            folder=folder,
            progress=replace(progress, on_resume=on_resume),
            memory_kills=memory_kills,
            part=part,
        )
        return replace(found.with_retain(other), execution=other.execution)

    n_all = n_first + len(retained)
    return begun_or_anew(kept, both)
