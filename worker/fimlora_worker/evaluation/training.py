"""One run: an arm's adapter trained by the Hugging Face `Trainer` and tested as it goes.

Everything that decides a result comes from the run, the settings and the data: rows in an order
of their own, a linear schedule, AdamW without weight decay. Nothing is printed, reported, kept
as a checkpoint, or left on disk, and the generators of this process stand where they stood.
"""

import gc
import math
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from fimlora.memory.out_of_memory import named_out_of_memory
from fimlora.model.random_states import random_states, restore_random_states
from fimlora_worker.evaluation.adapted import adapt, check_others_untouched, training_request
from fimlora_worker.evaluation.data import order_of
from fimlora_worker.evaluation.runs import LOSS, RunResult, RunSpec
from fimlora_worker.evaluation.settings import EvaluationSettings
from fimlora_worker.evaluation.task import Task
from fimlora_worker.evaluation.testing import held_out_metrics
from fimlora_worker.inputs.calibration_data import PaddedBatches
from fimlora_worker.inputs.examples import Example

OnStep = Callable[[int, int], None]


def train(spec: RunSpec, task: Task, *, folder: Path, on_step: OnStep) -> RunResult:
    """Train one run.

    Args:
        spec: The run.
        task: What it is trained and tested on.
        folder: An existing folder, for what the Trainer must have a place for.
        on_step: Called with the steps done and those in all, before each step and before each
            batch of a test; what it raises ends the run.

    Returns:
        The result. A run whose loss is no longer a number ends there, and has none.

    Raises:
        OutOfMemory: It does not fit.
    """
    device = task.model.device
    task.model.unload()  # a calibration may have left it in memory
    what = (
        f"training with batch_size={task.settings.batch_size} and "
        f"max_length={task.settings.max_length} does not fit; lower one of them"
    )
    try:
        with _undisturbed(device), named_out_of_memory(what, device):
            return _train(spec, task, folder, on_step)
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _train(spec: RunSpec, task: Task, folder: Path, on_step: OnStep) -> RunResult:
    plan = task.arms[spec.arm].plan(spec.seed)
    adapted = adapt(task.model, plan, seed=spec.seed, head=task.head)
    started = time.monotonic()
    watch = _Watch(task, adapted.model, on_step)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        trainer = _OrderedTrainer(
            adapted.model,
            _arguments(spec, task, scratch),
            examples=_in_order(spec, task),
            pad_id=task.pad_id,
            watch=watch,
        )
        trainer.train()
    if not math.isnan(watch.metrics[LOSS]):  # else no gradient is a number, of zeros neither
        check_others_untouched(adapted, plan)
    return RunResult(
        spec=spec,
        curve=tuple(watch.curve),
        metrics=watch.metrics,
        adapter_parameters=adapted.adapter_parameters,
        trainable_parameters=adapted.trainable_parameters,
        seconds=round(time.monotonic() - started, 3),
        n_steps=trainer.state.global_step,
    )


def _in_order(spec: RunSpec, task: Task) -> list[Example]:
    settings, train = task.settings, task.data.train
    n_wanted = settings.n_steps * settings.batch_size
    return [train[number] for number in order_of(len(train), n_wanted, seed=spec.seed)]


def _arguments(spec: RunSpec, task: Task, scratch: str) -> TrainingArguments:
    settings, request = task.settings, training_request(task.model.request)
    return _Arguments(
        output_dir=scratch,
        max_steps=settings.n_steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=spec.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=warmup_steps(settings),
        optim="adamw_torch",
        weight_decay=0.0,
        max_grad_norm=1.0,
        seed=spec.seed,
        bf16=request.dtype == "bfloat16",
        fp16=request.dtype == "float16",
        use_cpu=request.device == "cpu",
        label_names=["labels"],
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


class _Arguments(TrainingArguments):
    """Arguments that mean the same whatever the environment and the machine have."""

    def __post_init__(self) -> None:
        """Go by what was asked for, not by variables of accelerate."""
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.mixed_precision = "bf16" if self.bf16 else "fp16" if self.fp16 else "no"

    @property
    def n_gpu(self) -> int:
        """One at most: batches are not shared out among all GPUs that are visible."""
        return min(1, int(super().n_gpu))


def warmup_steps(settings: EvaluationSettings) -> int:
    """Steps in which the rate rises; at least one is left in which it falls."""
    return min(math.ceil(settings.n_steps * settings.warmup_share), settings.n_steps - 1)


def steps_with_tests(settings: EvaluationSettings) -> frozenset[int]:
    """Steps after which a run is tested, evenly spread, the last one among them."""
    n = min(settings.n_points, settings.n_steps)
    return frozenset(round(settings.n_steps * point / n) for point in range(1, n + 1))


class _OrderedTrainer(Trainer):
    """A Trainer that takes examples in the order given."""

    def __init__(
        self,
        model: nn.Module,
        arguments: TrainingArguments,
        *,
        examples: Sequence[Example],
        pad_id: int,
        watch: TrainerCallback,
    ) -> None:
        super().__init__(model=model, args=arguments, train_dataset=examples, callbacks=[watch])
        self.remove_callback(PrinterCallback)
        self._examples, self._pad_id = examples, pad_id

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches as the examples stand."""
        return DataLoader(
            self._examples,  # type: ignore[arg-type]
            batch_size=self.args.per_device_train_batch_size,
            collate_fn=self._pad,
        )

    def _pad(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        [batch] = PaddedBatches(examples, batch_size=len(examples), pad_id=self._pad_id)
        return batch


class _Watch(TrainerCallback):
    """Tells of every step and tests the model now and then."""

    def __init__(self, task: Task, model: nn.Module, on_step: OnStep) -> None:
        self._task, self._model, self._on_step = task, model, on_step
        self._steps = steps_with_tests(task.settings)
        self._batches = PaddedBatches(
            task.data.held_out, batch_size=task.settings.batch_size, pad_id=task.pad_id
        )
        self.curve: list[tuple[int, float]] = []
        self.metrics: dict[str, float] = {LOSS: math.nan}

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any
    ) -> None:
        """Say where the run is."""
        self._on_step(state.global_step, args.max_steps)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Test, and end a run that has nothing left to lose."""
        step = state.global_step
        if step not in self._steps:
            return
        self.metrics = held_out_metrics(
            self._model,
            self._batches,
            kind=self._task.kind,
            on_batch=lambda: self._on_step(step, args.max_steps),
        )
        self.curve.append((step, self.metrics[LOSS]))
        if math.isnan(self.metrics[LOSS]):
            control.should_training_stop = True


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Put every generator back that the Trainer seeds, and keep its libraries quiet."""
    python, numpy, torch_states = (
        random.getstate(),
        np.random.get_state(),
        random_states(device),
    )
    try:
        with warnings.catch_warnings():
            # Of PEFT and transformers about each other: nothing that a user could mend.
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        restore_random_states(torch_states)
