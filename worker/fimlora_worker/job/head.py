"""The task head of a job: fitted before anything is measured, where it is drawn anew."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from fimlora import fit_head_streamed
from fimlora.measuring.head.fitted import FittedHead, left_alone
from fimlora.measuring.head.resident import fitted_head
from fimlora.model.exclusive import exclusive
from fimlora_contract.jobs import Stage
from fimlora_worker.inputs.base_model import BaseModel
from fimlora_worker.inputs.calibration_data import PaddedBatches
from fimlora_worker.job.progress import Reporter


@dataclass
class JobHead:
    """Fits the head of a job once, by whichever executor comes to it first.

    The loaded model stays as it was: it may serve the next job, which has other rows.

    Attributes:
        model: The base model.
        batches: What it is fitted on; ``None`` where it is not to be fitted.
        reporter: Told about every batch.
    """

    model: BaseModel
    batches: PaddedBatches | None
    reporter: Reporter
    _found: FittedHead | None = field(default=None, init=False)

    def resident(self, loaded: nn.Module, size: int) -> FittedHead:
        """Fit it on the loaded model, so many examples at a time."""

        def fit(batches: PaddedBatches) -> FittedHead:
            with exclusive(loaded):
                on_batch = self.reporter.on_batch
                return fitted_head(loaded, batches, self.model.drawn, 0, size, on_batch)

        return self._once(fit)

    def streamed(self, size: int) -> FittedHead:
        """Fit it on the model in its folder, block by block."""

        def fit(batches: PaddedBatches) -> FittedHead:
            return fit_head_streamed(
                self.model.folder,
                batches,
                micro_batch_size=size,
                on_batch=self.reporter.on_batch,
                **self.model.streaming_options(),
            )

        return self._once(fit)

    def _once(self, fit: Callable[[PaddedBatches], FittedHead]) -> FittedHead:
        if self._found is None and self.batches is None:
            kind = "fresh" if self.model.has_drawn_head else "pretrained"
            self._found = left_alone(kind, self.model.drawn)
        if self._found is None:
            assert self.batches is not None
            self.reporter.enter(Stage.FITTING_HEAD, n_batches=len(self.batches))
            self._found = fit(self.batches)
        return self._found
