"""Fit the head of a model in memory: one forward pass over its rows, without gradients."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fimlora.measuring.examples.examples import Examples, example_logits
from fimlora.measuring.examples.losses import Loss
from fimlora.measuring.examples.own_loss import failures_named, without_auxiliary_losses
from fimlora.measuring.head.fitted import (
    FittedHead,
    HeadRows,
    head_examples,
    left_alone,
    one_of_each,
    put_head,
)
from fimlora.measuring.head.last_linear import LastLinear, candidates, no_last_linear
from fimlora.measuring.micro_batch_size import MicroBatches
from fimlora.memory.out_of_memory import is_out_of_memory, out_of_memory, release
from fimlora.model.compiled import running_uncompiled
from fimlora.model.exclusive import exclusive
from fimlora.model.pass_state import PassState
from fimlora.model.placement import input_device
from fimlora.model.preserved import preserved

OnBatch = Callable[[int, int], None]


def fit_head(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    drawn: Collection[str] | None = None,
    seed: int = 0,
    micro_batch_size: int | None = None,
    on_batch: OnBatch | None = None,
) -> FittedHead:
    """Fit a classifier's last linear map on features of the frozen model, and put it in place.

    A head that was drawn at random drowns the task in what is measured. So fit it first:
    multinomial logistic regression for one class per example, one logistic regression per
    label for several, ridge regression for numbers, as the model's own loss reads its labels.
    `fimlora.measuring.head.linear_fit` says how it is regularised. Only the last map changes;
    what else is drawn, such as a pooler, stays and is named in the facts.

    Args:
        model: A transformers model for sequence classification, wrapped by PEFT or not, in
            memory. Its last map is replaced; it is the only thing that changes.
        batches: Batches with labels, as for `fimlora.measure`; all of them are used: about a
            thousand rows do well. Take others than those that are measured: labels that the
            head has seen look as if they followed from their rows.
        drawn: Names of modules whose weights the checkpoint lacks. A last map that is none of
            these came with the checkpoint and is left alone; ``None`` fits it in any case.
        seed: Seed of the random state meanwhile.
        micro_batch_size: Examples per forward pass, to save memory.
        on_batch: Called with (batches done, batches in all) after each batch.

    Returns:
        The parameters that the map now has, and the facts of the fit.

    Raises:
        EmptyCalibration: There is no batch, or no example with a label.
        InvalidOption: The model is no classifier.
        UnsupportedModule: Its logits are neither the outputs of a linear map nor means of them.
        NumericalFailure: A feature is NaN or infinite.
        OutOfMemory: Not even one example at a time fits.
    """  # noqa: DOC502 - the helpers raise
    with exclusive(model), running_uncompiled(model) as plain:
        found = fitted_head(plain, batches, drawn, seed, micro_batch_size, on_batch)
        put_head(plain, found.weights)
    return found


def fitted_head(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    drawn: Collection[str] | None,
    seed: int,
    micro_batch_size: int | None,
    on_batch: OnBatch | None,
) -> FittedHead:
    """Do what `fit_head` does, and leave the model as it is.

    Args:
        model: As for `fit_head`, as is all that follows; not compiled, and nobody else's now.
        batches: Batches with labels.
        drawn: Names of modules whose weights the checkpoint lacks.
        seed: Seed of the random state meanwhile.
        micro_batch_size: Examples per forward pass.
        on_batch: Called after each batch.

    Returns:
        The fitted map.
    """
    device, rows = input_device(model), HeadRows()
    loss, found = head_examples(model, batches, device)
    with ExitStack() as stack:
        state = stack.enter_context(preserved(model, train_mode=False, seed=seed))
        stack.enter_context(without_auxiliary_losses(model))
        stack.enter_context(torch.no_grad())
        passes = _Passes(model, loss, state, device, MicroBatches(micro_batch_size), rows)
        with failures_named(model):
            linear = passes.find(found)
        if drawn is not None and linear.name not in drawn:
            return left_alone("pretrained", drawn)
        for number, examples in enumerate(found, 1):
            passes.run(linear, examples, f"batch {number} of {len(found)} for the head")
            if on_batch is not None:
                on_batch(number, len(found))
    return rows.fit(linear, loss.kind, drawn=drawn or ())


@dataclass(frozen=True)
class _Passes:
    """What stays the same from batch to batch."""

    model: nn.Module
    loss: Loss
    state: PassState
    device: torch.device
    sizes: MicroBatches
    rows: HeadRows

    def find(self, batches: Sequence[Examples]) -> LastLinear:
        """Find the last map, by a pass of one example for each that could be it."""
        one, found = one_of_each(batches), candidates(self.model)
        for linear in found:
            if self._features(linear, one) is not None:
                return linear
        raise no_last_linear(self.model, found)

    def run(self, linear: LastLinear, examples: Examples, where: str) -> None:
        """Take the features of a batch, in as many passes as memory wants."""
        start = 0
        while start < len(examples):
            part = examples.part(start, self.sizes.of(len(examples) - start))
            try:
                features = self._features(linear, part)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                named = out_of_memory(
                    f"one example of {where} does not fit", error, self.device
                )
                release(error, self.device)
                if not self.sizes.halve(len(part)):
                    raise named from error
                continue
            if features is None:
                raise no_last_linear(self.model, [linear])
            self.rows.add(features, part.batch["labels"])
            start += len(part)

    def _features(self, linear: LastLinear, part: Examples) -> Any:
        self.state.set()
        # What is frozen has no graph: it begins behind the map.
        with linear.replacing(), torch.enable_grad():
            logits = example_logits(self.model, self.loss, part, self.device)
            return linear.features(logits)
