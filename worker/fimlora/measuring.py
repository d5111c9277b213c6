"""Measure the empirical Fisher information of LoRA-B on a model that has no LoRA.

At B = 0 the gradient of B is ``s * sum_t g_t (A x_t)^T``, with x a module's input and g the
gradient of its output: both exist in the frozen base model. So nothing is attached; hooks
see x and g while a calibration batch goes forward and backward once.
"""

import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fimlora.batches import Batch, as_batch, count_examples, select, to_device
from fimlora.errors import EmptyCalibration, InvalidOption, NumericalFailure
from fimlora.frozen import frozen
from fimlora.hooks import Watch, watch_modules
from fimlora.losses import Loss, LossFn, choose_loss
from fimlora.plan import TargetModule
from fimlora.recorder import Recorder
from fimlora.statistics import Estimator, Statistics
from fimlora.targets import base_model_of, count_base_parameters, find_targets, locate

OnBatch = Callable[[int, int], None]


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
    micro_batch_size: int | None = None,
    train_mode: bool = False,
    loss_fn: LossFn | None = None,
    on_batch: OnBatch | None = None,
) -> Statistics:
    """Run a few calibration batches and record what scores are made from.

    The model is frozen meanwhile and comes back exactly as it was, also after an exception.
    On a model that PEFT has wrapped, the base model's own linear maps are measured, with
    the adapter acting as it does; a fresh one (B = 0) changes nothing.

    Args:
        model: A transformers model for sequence classification or causal language
            modelling, on any device; for others give a ``loss_fn``.
        batches: Mappings of the model's argument names to tensors whose first axis counts
            examples. One that is shorter than ``n_batches`` is used up.
        target_modules: See `fimlora.targets.find_targets`.
        n_batches: Batches to use at most.
        estimator: ``exact``, ``sampled`` or ``both``; see `fimlora.statistics.Estimator`.
        rank: Rows of the A that ``sampled`` draws.
        seed: Seed of that A, and of the random state while measuring.
        scale: LoRA scale s = alpha / rank that scores are stated for.
        micro_batch_size: Examples per forward pass, to save memory; changes no result.
        train_mode: Leave dropout on, as the published code does.
        loss_fn: Maps the model's outputs and the batch to one loss per example.
        on_batch: Called with (batches done, batches expected) after each batch; what it
            raises ends the measurement.

    Returns:
        The statistics of the batches that were used.

    Raises:
        EmptyCalibration: There is no batch, or no example with a label.
        InvalidOption: An argument is outside what is allowed.
    """
    _check_options(n_batches=n_batches, rank=rank, micro_batch_size=micro_batch_size)
    if estimator not in set(Estimator):
        allowed = ", ".join(map(repr, Estimator))
        raise InvalidOption(f"estimator={estimator!r}; allowed are {allowed}")
    modules = find_targets(model, target_modules)
    kind = Estimator(estimator)
    device = next(model.parameters()).device
    recorder = Recorder(modules, estimator=kind, rank=rank, seed=seed, device=device)
    expected = _expected(batches, n_batches)
    n_examples = n_used = n_done = 0
    loss: Loss | None = None
    with frozen(model, train_mode=train_mode, seed=seed):
        located = {module.name: locate(model, module) for module in modules}
        with watch_modules(located, recorder.keep, recorder.on_gradients) as watch:
            for item in itertools.islice(batches, n_batches):
                batch = as_batch(item)
                loss = loss or choose_loss(model, batch, loss_fn)
                run = _Run(model, modules, loss, watch, recorder, device, micro_batch_size)
                n_labelled = run.measure_batch(batch, f"batch {n_done + 1} of {expected}")
                n_examples += n_labelled
                n_used += n_labelled > 0
                n_done += 1
                if on_batch is not None:
                    on_batch(n_done, expected)
    if loss is None or not n_examples:
        raise EmptyCalibration(
            "no example carries a label" if n_done else "the loader gave no batch"
        )
    return Statistics(
        modules=modules,
        estimator=kind,
        n_examples=n_examples,
        n_batches=n_used,
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
    micro_batch_size: int | None

    def measure_batch(self, batch: Batch, where: str) -> int:
        """Take one calibration batch through the model, in micro-batches, and record it.

        Args:
            batch: The batch.
            where: What to call it in an error.

        Returns:
            Its number of examples that carry a label.
        """
        counts = self.loss.count_labels(batch, count_examples(batch)).cpu()
        labelled = counts > 0
        if not labelled.all():
            batch = select(batch, labelled.nonzero()[:, 0], n_examples=len(counts))
            counts = counts[labelled]
        n = len(counts)
        if not n:
            return 0
        weights = (counts / counts.sum()).to(self.device, torch.float32)
        losses, start = [], 0
        while start < n:
            size = 1 if self.recorder.one_at_a_time else self.micro_batch_size or n
            part = slice(start, start + size)
            some = select(batch, part, n_examples=n) if size < n else batch
            done = self._forward_backward(some, weights[part])
            if done is not None:
                losses.append(done)
                start += size
        self._check(torch.cat(losses), self.recorder.end_batch(), where)
        return n

    def _forward_backward(self, batch: Batch, weights: Tensor) -> Tensor | None:
        """Run some examples; ``None`` when the recorder asks to run them differently."""
        self.watch.begin_forward()
        self.recorder.begin(weights)
        losses = self._losses(batch, len(weights))
        if self.recorder.adapt(self.watch.calls):
            return None
        # The sum, not the mean: each example's gradient comes out unscaled.
        self.watch.backward(losses.sum())
        return losses.detach()

    def _losses(self, batch: Batch, n_examples: int) -> Tensor:
        inputs = to_device(batch, self.device)
        if self.loss.loss_fn is None:
            inputs.pop("labels")  # the model's own loss would be computed for nothing
        if "use_cache" in inspect.signature(base_model_of(self.model).forward).parameters:
            inputs.setdefault("use_cache", False)
        outputs = self.model(**inputs)
        losses = self.loss.per_example(outputs, batch)
        if losses.shape != (n_examples,):
            raise InvalidOption(
                f"loss_fn gave shape {tuple(losses.shape)}; expected one loss per example, "
                f"({n_examples},)"
            )
        return losses

    def _check(self, losses: Tensor, checks: Tensor, where: str) -> None:
        """Look at a batch's numbers, in the one transfer from the device that it costs."""
        found = torch.cat([losses.double(), checks.double().to(losses.device)]).tolist()
        for value in found[: len(losses)]:
            if not math.isfinite(value):
                raise NumericalFailure(f"loss is {value} in {where}")
        for module, value in zip(self.modules, found[len(losses) :], strict=True):
            if not math.isfinite(value):
                raise NumericalFailure(
                    f"the gradient of target module {module.name!r} is {value} in {where}"
                )


def _check_options(**options: int | None) -> None:
    for name, value in options.items():
        if value is not None and value < 1:
            raise InvalidOption(f"{name}={value}: it must be at least 1")


def _expected(batches: Iterable[Mapping[str, Any]], n_batches: int) -> int:
    try:
        return min(n_batches, len(batches))  # type: ignore[arg-type]
    except TypeError:  # a generator does not know its length
        return n_batches
