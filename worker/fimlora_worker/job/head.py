"""The task head of a job: fitted before anything is measured, where it is drawn anew."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from fimlora import Statistics, fit_head_streamed
from fimlora.measuring.head.fitted import FittedHead, left_alone
from fimlora.measuring.head.resident import fitted_head
from fimlora.model.exclusive import exclusive
from fimlora_contract.jobs import Stage
from fimlora_worker.inputs.base_model import BaseModel
from fimlora_worker.inputs.calibration_data import HeadBatches
from fimlora_worker.job.progress import Reporter


def _nothing(_: FittedHead) -> None:
    pass


@dataclass
class JobHead:
    """Fits the head of a job once, by whichever executor comes to it first.

    The loaded model stays as it was: it may serve the next job, which has other rows.

    Attributes:
        model: The base model.
        batches: What it is fitted on; ``None`` where it is not to be fitted.
        reporter: Told about every batch.
        found: It, where it is known already.
        on_found: Called with it once it is known, if it was not before.
    """

    model: BaseModel
    batches: HeadBatches | None
    reporter: Reporter
    found: FittedHead | None = None
    on_found: Callable[[FittedHead], None] = _nothing

    def resident(self, loaded: nn.Module, size: int) -> FittedHead:
        """Fit it on the loaded model, so many examples at a time."""

        def fit(batches: HeadBatches) -> FittedHead:
            with exclusive(loaded):
                on_batch = self.reporter.on_batch
                return fitted_head(loaded, batches, self.model.drawn, 0, size, on_batch)

        return self._once(fit)

    def streamed(self, size: int) -> FittedHead:
        """Fit it on the model in its folder, block by block."""

        def fit(batches: HeadBatches) -> FittedHead:
            return fit_head_streamed(
                self.model.folder,
                batches,
                micro_batch_size=size,
                on_batch=self.reporter.on_batch,
                **self.model.streaming_options(),
            )

        return self._once(fit)

    def _once(self, fit: Callable[[HeadBatches], FittedHead]) -> FittedHead:
        if self.found is None and self.batches is None:
            kind = "fresh" if self.model.has_drawn_head else "pretrained"
            self.found = left_alone(kind, self.model.drawn)
        if self.found is None:
            assert self.batches is not None
            self.reporter.enter(Stage.FITTING_HEAD, n_batches=len(self.batches))
            self.found = _stated(fit(self.batches), self.batches)
            self.on_found(self.found)
        return self.found


def without_unused(statistics: Statistics, n_unused: int) -> Statistics:
    """Take back what is said of measured rows for those that no round came to.

    Args:
        statistics: What was measured; its head was fitted on the last rows, if on any of these.
        n_unused: How many of the last rows were not measured.

    Returns:
        The same with the rows of its head that were.
    """
    head = statistics.head
    if head is None or "measured_rows" not in head:
        return statistics
    facts = {**head, "measured_rows": max(0, head["measured_rows"] - n_unused)}
    parts = {name: replace(part, head=facts) for name, part in statistics.parts.items()}
    return replace(statistics, head=facts).with_parts(parts)


def _stated(found: FittedHead, batches: HeadBatches) -> FittedHead:
    """Say how many of the rows it was fitted on are measured, too."""
    if found.facts["kind"] != "fitted":
        return found
    return replace(found, facts={**found.facts, "measured_rows": batches.n_measured})
