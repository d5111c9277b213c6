"""Measure the empirical Fisher information of LoRA-B on a model that has no LoRA.

At B = 0 the gradient of B is ``s * sum_t g_t (A x_t)^T``, with x a module's input and g the
gradient of its output: both exist in the frozen base model. So nothing is attached; hooks
see x and g while a calibration batch goes forward and backward once.
"""

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fimlora.batches import Batch, as_batch
from fimlora.errors import EmptyCalibration, InvalidOption
from fimlora.examples import Examples, check_finite, example_losses, labelled_examples
from fimlora.execution import Execution, Executor
from fimlora.frozen import frozen, random_states, restore_random_states
from fimlora.gradient_sums import SPECTRA_BYTES
from fimlora.half_on_cpu import widened_for
from fimlora.hooks import Watch, watch_modules
from fimlora.losses import Loss, LossFn, choose_loss
from fimlora.memory import peak_bytes
from fimlora.memory_errors import is_out_of_memory, out_of_memory, release
from fimlora.micro_batches import MicroBatches
from fimlora.plan import TargetModule
from fimlora.progress_file import ProgressFile, open_progress
from fimlora.record import check_record, parse_record
from fimlora.recorded_sums import RecordedSums
from fimlora.recorder import Recorder
from fimlora.run_progress import RunProgress
from fimlora.statistics import Estimator, Statistics
from fimlora.targets import (
    count_base_parameters,
    find_left_out,
    find_targets,
    locate,
    uncompiled,
)

OnBatch = Callable[[int, int], None]
_LESS = "cut examples shorter, run in a narrower dtype, or stream the model (measure_streamed)"


def measure(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    target_modules: str | Sequence[str] | None = None,
    n_batches: int = 8,
    estimator: str = "exact",
    rank: int = 8,
    seed: int = 0,
    scale: int | float = 2,
    record: str | Collection[str] = (),
    spectra_bytes: int = SPECTRA_BYTES,
    micro_batch_size: int | None = None,
    train_mode: bool = False,
    loss_fn: LossFn | None = None,
    on_batch: OnBatch | None = None,
    progress_file: str | Path | ProgressFile | None = None,
) -> Statistics:
    """Run a few calibration batches and record what scores are made from.

    The model is frozen meanwhile and comes back exactly as it was, also after an exception.
    On a model that PEFT has wrapped, the base model's own linear maps are measured, with
    the adapter acting as it does; a fresh one (B = 0) changes nothing.

    Args:
        model: A transformers model for sequence classification, causal or sequence-to-sequence
            language modelling, on any device; for others give a ``loss_fn``.
        batches: Mappings of the model's argument names to tensors whose first axis counts
            examples. One that is shorter than ``n_batches`` is used up.
        target_modules: See `fimlora.targets.find_targets`.
        n_batches: Batches to use at most.
        estimator: ``exact``, ``sampled`` or ``both``; see `fimlora.statistics.Estimator`.
        rank: Rows of the A that ``sampled`` draws.
        seed: Seed of that A, and of the random state while measuring.
        scale: LoRA scale s = alpha / rank that scores are stated for.
        record: What to record besides: ``spectra``, which ``allocate(..., rule="spectral")``
            needs (experimental), ``moments`` and ``batch_energies``; see
            `fimlora.record.Record`. All keep the modules' inputs until the backward pass.
        spectra_bytes: Memory for the gradients that spectra are taken of. Where they need
            more they are sketched, and the statistics state the error.
        micro_batch_size: Examples per forward pass, to save memory; changes no result. When
            memory runs out it is halved, and the pass that failed is run again.
        train_mode: Leave dropout on, as the published code does.
        loss_fn: Maps the model's outputs and the batch to one loss per example.
        on_batch: Called with (batches done, batches expected) after each batch; what it
            raises ends the measurement.
        progress_file: Save the sums here after batches. If a run was cut off and left the
            file, this one goes on from it, over the same batches, to the same statistics; see
            `fimlora.ProgressFile`.

    Returns:
        The statistics of the batches that were used.

    Raises:
        EmptyCalibration: There is no batch, or no example with a label.
        InvalidOption: An argument is outside what is allowed.
        OutOfMemory: Not even one example at a time fits.
        InvalidProgress: The progress file is damaged, or comes from another run.
    """  # noqa: DOC502 - the helpers raise
    check_at_least_one(n_batches=n_batches, rank=rank, micro_batch_size=micro_batch_size)
    check_scale(scale)
    model = uncompiled(model)
    check_can_run(model)
    kind = parse_estimator(estimator)
    modules = find_targets(model, target_modules)
    device = next(model.parameters()).device
    wanted = parse_record(record)
    check_record(wanted, model)
    sums = RecordedSums(modules, record=wanted, spectra_bytes=spectra_bytes) if wanted else None
    recorder = Recorder(
        modules, estimator=kind, rank=rank, seed=seed, device=device, recorded=sums
    )
    expected = count_expected(batches, n_batches)
    sizes = MicroBatches(micro_batch_size)
    settings = {
        "executor": Executor.RESIDENT, "estimator": kind, "rank": rank, "seed": seed, "scale": scale,
        "record": sorted(wanted), "spectra_bytes": spectra_bytes, "n_batches": n_batches,
        "micro_batch_size": micro_batch_size, "train_mode": train_mode,
    }  # fmt: skip
    saved = open_progress(progress_file, model, modules, settings, loss_fn)
    progress = RunProgress(recorder, sizes, expected=expected, saved=saved, on_batch=on_batch)
    loss: Loss | None = None
    with frozen(model, train_mode=train_mode, seed=seed):
        progress.resume()
        located = {module.name: locate(model, module) for module in modules}
        with watch_modules(located, recorder.keep, recorder.on_gradients) as watch:
            for item in itertools.islice(batches, n_batches):
                batch = as_batch(item)
                loss = loss or choose_loss(model, batch, loss_fn)
                if progress.skips(batch):
                    continue
                run = _Run(model, modules, loss, watch, recorder, device, sizes)
                where = f"batch {progress.n_done + 1} of {expected}"
                progress.count(run.measure_batch(batch, where))
        progress.check_complete()
    if loss is None or not progress.n_examples:
        raise EmptyCalibration(
            "no example carries a label" if progress.n_done else "the loader gave no batch"
        )
    return Statistics(
        modules=modules,
        estimator=kind,
        n_examples=progress.n_examples,
        n_batches=progress.n_used,
        base_parameters=count_base_parameters(model),
        loss=loss.kind.value,
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        scale=scale,
        train_mode=train_mode,
        rank=rank if kind.has_sampled else None,
        seed=seed if kind.has_sampled else None,
        row_energies=recorder.row_energies(),
        example_energies=recorder.example_energies(),
        squared_gradients=recorder.squared_gradients(),
        not_targeted=find_left_out(model, target_modules),
        execution=Execution(Executor.RESIDENT, sizes.largest, peak_bytes(device)),
        **(sums.results(progress.n_examples) if sums is not None else {}),
    )


@dataclass(frozen=True)
class _Run:
    """What stays the same from batch to batch."""

    model: nn.Module
    modules: tuple[TargetModule, ...]
    loss: Loss
    watch: Watch
    recorder: Recorder
    device: torch.device
    sizes: MicroBatches

    def measure_batch(self, batch: Batch, where: str) -> int:
        """Take one calibration batch through the model, in micro-batches, and record it.

        Args:
            batch: The batch.
            where: What to call it in an error.

        Returns:
            Its number of examples that carry a label.
        """
        examples = labelled_examples(batch, self.loss, self.device)
        n = len(examples)
        if not n:
            return 0
        losses, start = [], 0
        while start < n:
            size = 1 if self.recorder.one_at_a_time else self.sizes.of(n - start)
            part = examples.part(start, size)
            done = self._try(part, where, is_whole=len(part) == n)
            if done is not None:
                self.sizes.succeed(len(part))
                losses.append(done)
                start += len(part)
        checks = self.recorder.end_batch(examples.order)
        check_finite(self.modules, torch.cat(losses), checks, where)
        return n

    def _try(self, part: Examples, where: str, *, is_whole: bool) -> Tensor | None:
        """Run some examples; ``None`` when they are to be run differently, or fewer of them."""
        states = random_states(self.device) if self.model.training else None
        try:
            with widened_for(self.model, self.device):
                return self._forward_backward(part, where, is_whole=is_whole)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            named = out_of_memory(
                f"one example of {where} does not fit; {_LESS}", error, self.device
            )
            self.watch.begin_forward()
            self.recorder.discard()
            release(error, self.device)
            if not self.sizes.halve(len(part)):
                raise named from error
        if states is not None:  # dropout is to draw what it had drawn
            restore_random_states(states)
        return None

    def _forward_backward(
        self, examples: Examples, where: str, *, is_whole: bool
    ) -> Tensor | None:
        """Run some examples; ``None`` when the recorder asks to run them differently."""
        self.watch.begin_forward()
        self.recorder.begin(examples.weights, examples.token_mask, is_whole=is_whole)
        losses = example_losses(self.model, self.loss, examples, self.device, where)
        if self.recorder.adapt(self.watch.calls):
            return None
        # The sum, not the mean: each example's gradient comes out unscaled.
        self.watch.backward(losses.sum())
        self.recorder.commit()
        return losses.detach()


def parse_estimator(estimator: str) -> Estimator:
    """Read the name of an estimator.

    Returns:
        The estimator.

    Raises:
        InvalidOption: There is none of that name.
    """
    if estimator not in set(Estimator):
        allowed = ", ".join(repr(known.value) for known in Estimator)
        raise InvalidOption(f"estimator={estimator!r}; allowed are {allowed}")
    return Estimator(estimator)


def check_at_least_one(**options: int | None) -> None:
    """Refuse a count that is not a whole number or below 1.

    Args:
        **options: Counts by the name of their argument; ``None`` is allowed.

    Raises:
        InvalidOption: One is.
    """
    for name, value in options.items():
        if value is not None and (value is True or not hasattr(value, "__index__")):
            raise InvalidOption(f"{name}={value!r}: it must be an integer of at least 1")
        if value is not None and value < 1:
            raise InvalidOption(f"{name}={value}: it must be at least 1")


def check_scale(scale: int | float) -> None:
    """Refuse a LoRA scale that no score can be stated for.

    Args:
        scale: The scale.

    Raises:
        InvalidOption: It is not a number above 0, or not finite.
    """
    if not 0 < scale < math.inf:
        raise InvalidOption(f"scale={scale!r}: it must be a number above 0 and finite")


def check_gradients_allowed() -> None:
    """Refuse to run where torch builds no graph whatever is asked of it.

    Raises:
        InvalidOption: This is in inference mode.
    """
    if torch.is_inference_mode_enabled():
        raise InvalidOption(
            "measuring needs gradients, which torch.inference_mode() rules out: call it "
            "outside; torch.no_grad() is allowed"
        )


def check_can_run(model: nn.Module) -> None:
    """Refuse a model or a place in which no backward pass can run.

    Args:
        model: The model.

    Raises:
        InvalidOption: The message says what to do instead.
    """
    check_gradients_allowed()
    is_offloaded = any(hasattr(module, "_hf_hook") for module in model.modules())
    name = next((n for n, p in model.named_parameters() if p.is_meta), None)
    if name is not None and not is_offloaded:
        raise InvalidOption(
            f"parameter {name!r} is on the meta device and has no values: load the weights "
            "first, or give their folder to measure_streamed"
        )


def count_expected(batches: Iterable[Mapping[str, Any]], n_batches: int) -> int:
    """Say how many batches a loader will give.

    Returns:
        At most ``n_batches``.
    """
    try:
        return min(n_batches, len(batches))  # type: ignore[arg-type]
    except TypeError:  # a generator does not know its length
        return n_batches
