"""Fit the head of a model that does not fit: its features by one sweep forward, block by block.

Rows go through the blocks together as long as what flows between blocks stays within a limit;
each further group of rows reads the blocks once more.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fimlora.measuring.examples.examples import Examples, example_logits
from fimlora.measuring.examples.losses import Loss
from fimlora.measuring.examples.own_loss import failures_named, without_auxiliary_losses
from fimlora.measuring.head.fitted import (
    FittedHead,
    HeadRows,
    head_examples,
    left_alone,
    one_of_each,
)
from fimlora.measuring.head.last_linear import LastLinear, candidates, no_last_linear
from fimlora.measuring.streamed.block_weights import BlockWeights
from fimlora.measuring.streamed.blocks import find_blocks
from fimlora.measuring.streamed.boundary_store import BoundaryStore, boundary_store
from fimlora.measuring.streamed.micro_batch import next_block
from fimlora.measuring.streamed.paused_forward import PausedForward
from fimlora.measuring.streamed.recompute import BlockCalls
from fimlora.measuring.streamed.run import running
from fimlora.model.checkpoint import Checkpoint
from fimlora.model.drawn import drawn_modules
from fimlora.model.pass_state import Change, PassState
from fimlora.model.skeleton import build_skeleton
from fimlora.model.weight_reader import open_weights

OnBatch = Callable[[int, int], None]
# What may flow between two blocks at once, and the threads that may wait there.
FRONTIER_BYTES = 2**30
_MOST_PASSES = 256


def fit_head_streamed(
    model_path: str | Path,
    batches: Iterable[Mapping[str, Any]],
    *,
    model_class: Any = None,
    config: Any = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    weights_seed: int = 0,
    ignore_mismatched_sizes: bool = False,
    micro_batch_size: int | None = None,
    frontier_bytes: int = FRONTIER_BYTES,
    on_batch: OnBatch | None = None,
) -> FittedHead:
    """Do what `fimlora.fit_head` does with a model of any size, from its folder.

    Nothing is written: give the weights to ``measure_streamed(head_weights=...)``.

    Args:
        model_path: As for `fimlora.measure_streamed`, as are the next five.
        batches: As for `fimlora.fit_head`.
        model_class: A model class or auto class of transformers.
        config: The model's config, if it is not the folder's own.
        dtype: Dtype to run in.
        device: Where blocks compute.
        weights_seed: Seed of weights that the checkpoint lacks.
        ignore_mismatched_sizes: Whether a head of another shape is drawn anew.
        micro_batch_size: Examples per forward pass; ``None`` for whole batches.
        frontier_bytes: What may flow between two blocks at once. Rows of which more flows go
            in several sweeps, and each reads the model.
        on_batch: Called with (batches done, batches in all) after each block: all batches
            advance together, so "done" is the share of the work.

    Returns:
        The fitted map; without weights where the checkpoint has it.

    Raises:
        EmptyCalibration: There is no batch, or no example with a label.
        InvalidOption: The model is no classifier.
        UnsupportedModule: Its logits are neither the outputs of a linear map nor means of them, or it
            cannot be cut into blocks.
        NumericalFailure: A feature is NaN or infinite.
    """  # noqa: DOC502 - the helpers raise
    folder, place, rows = Path(model_path), torch.device(device), HeadRows()
    model = build_skeleton(folder, model_class=model_class, config=config, dtype=dtype)
    reader = open_weights(
        model, Checkpoint(folder), seed=weights_seed, redraws=ignore_mismatched_sizes
    )
    drawn = drawn_modules(model, reader.drawn)
    blocks = find_blocks(model, ())
    loss, found = head_examples(model, batches, place)
    weights = BlockWeights(model, reader, blocks, place)
    with ExitStack() as stack:
        store = stack.enter_context(boundary_store(None, None))
        state = stack.enter_context(running(model, blocks, weights, seed=0))
        stack.enter_context(without_auxiliary_losses(model))
        sweeps = _Sweeps(model, blocks, weights, loss, state, place, store)
        stack.enter_context(failures_named(model))
        linear = sweeps.find(found)
        if linear.name not in drawn:
            return left_alone("pretrained", drawn)
        parts = [part for one in found for part in one.parts(micro_batch_size or len(one))]
        sweeps.run(linear, parts, rows, frontier_bytes, _share(on_batch, len(found)))
    return rows.fit(linear, loss.kind, drawn=drawn)


def _share(on_batch: OnBatch | None, n_batches: int) -> Callable[[float], None]:
    """Report a share of the work in batches."""

    def report(share: float) -> None:
        if on_batch is not None:
            on_batch(int(share * n_batches), n_batches)

    return report


class _HeadPass:
    """Some examples on their way through a streamed model, to the features of its head."""

    def __init__(self, body: Callable[[], Tensor], state: PassState, store: BoundaryStore):
        self.forward = PausedForward(body)
        self._state, self._calls = state, BlockCalls(store)
        self._changes = list[Change]()

    def advance(self, outputs: object = None) -> None:
        """Go on to the next block, or to the end."""
        self._state.set(self._changes)
        self.forward.advance(outputs)
        self._changes = self._state.changes()

    def run(self, block: nn.Module) -> object:
        """Run the block that it waits at; gives what to advance with."""
        assert self.forward.call is not None
        self._state.set(self._changes, within=block)
        with torch.no_grad():
            return self._calls.run(block, self.forward.call, keeps=False)


@dataclass
class _Sweeps:
    """What stays the same from sweep to sweep."""

    model: nn.Module
    blocks: Mapping[str, nn.Module]
    weights: BlockWeights
    loss: Loss
    state: PassState
    device: torch.device
    store: BoundaryStore
    _n_done: int = field(default=0, init=False)

    def find(self, batches: Sequence[Examples]) -> LastLinear:
        """Find the last map; where several could be it, by a sweep of one example for each."""
        found = candidates(self.model)
        if len(found) == 1:
            return found[0]
        for linear in found:
            if self._features(linear, [one_of_each(batches)], lambda: None)[0] is not None:
                return linear
        raise no_last_linear(self.model, found)

    def run(
        self,
        linear: LastLinear,
        parts: Sequence[Examples],
        rows: HeadRows,
        frontier_bytes: int,
        report: Callable[[float], None],
    ) -> None:
        """Take the features of all micro-batches, group by group."""
        groups = list(_groups(parts, _bytes_per_token(linear), frontier_bytes))
        n_steps, n_done = len(groups) * len(self.blocks), 0

        def step() -> None:
            nonlocal n_done
            n_done += 1
            report(min(1.0, n_done / n_steps))

        for group in groups:
            for part, features in zip(group, self._features(linear, group, step), strict=True):
                if features is None:
                    raise no_last_linear(self.model, [linear])
                rows.add(features, part.batch["labels"])

    def _features(
        self, linear: LastLinear, parts: Sequence[Examples], step: Callable[[], None]
    ) -> list[Tensor | None]:
        found: list[Tensor | None] = [None] * len(parts)

        def body(number: int) -> Tensor:
            with torch.enable_grad():  # what is frozen has no graph: it begins behind the map
                logits = example_logits(self.model, self.loss, parts[number], self.device)
            found[number] = linear.features(logits)
            return logits

        passes = [
            _HeadPass(lambda n=n: body(n), self.state, self.store)  # type: ignore[misc]
            for n in range(len(parts))
        ]
        try:
            with linear.replacing():
                self._sweep(passes, step)
        finally:
            for one in passes:
                one.forward.abandon()
        return found

    def _sweep(self, passes: Sequence[_HeadPass], step: Callable[[], None]) -> None:
        order = list(self.blocks)
        self.weights.prefetch(order[0])
        for one in passes:
            one.advance()
        while (block := next_block([one.forward for one in passes])) is not None:
            self.weights.release_embeddings_and_head()
            self.weights.load(block)
            following = next(iter(order[order.index(block) + 1 :]), None)
            made: Iterable[object] = (one.run(self.blocks[block]) for one in passes)
            if following is not None:
                self.weights.prefetch(following)
            else:  # what comes now may be a head as large as several blocks
                made = list(made)
                self.weights.mark_reusable(block)
            for one, outputs in zip(passes, made, strict=True):
                one.advance(outputs)
            step()
        self.weights.release_embeddings_and_head()


def _bytes_per_token(linear: LastLinear) -> int:
    """What flows between blocks for a token: about as many numbers as the head sees."""
    return linear.linear.in_features * linear.linear.weight.itemsize


def _groups(
    parts: Sequence[Examples], bytes_per_token: int, most_bytes: int
) -> Iterator[list[Examples]]:
    """Split micro-batches into groups that may flow together; one alone always may."""
    group: list[Examples] = []
    n_bytes = 0
    for part in parts:
        size = part.batch["input_ids"].numel() * bytes_per_token
        if group and (n_bytes + size > most_bytes or len(group) == _MOST_PASSES):
            yield group
            group, n_bytes = [], 0
        group.append(part)
        n_bytes += size
    yield group
