"""Measure a model that does not fit: one block in memory at a time, all batches through it.

Forward, every calibration batch goes through a block before the next block is loaded; what
blocks are called with is kept. Then the head gives the gradients behind the last block, and
the blocks come back in reverse: each is run again under the same hooks and the same recorder
as in `fimlora.measuring`. Each weight is read at most twice, whatever the number of batches.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fimlora.batches import as_batch
from fimlora.blocks import find_units, targets_of
from fimlora.boundary import BoundaryStore, boundary_store
from fimlora.checkpoint import Checkpoint
from fimlora.errors import EmptyCalibration, MissingGradient, UnsupportedModule
from fimlora.examples import Examples, check_finite, example_losses, labelled_examples
from fimlora.frozen import frozen
from fimlora.hooks import watch_modules
from fimlora.losses import Loss, LossFn, choose_loss
from fimlora.measuring import OnBatch, check_at_least_one, check_scale, parse_estimator
from fimlora.passes import Pass, stops
from fimlora.plan import TargetModule
from fimlora.recorder import Recorder
from fimlora.skeleton import build_skeleton
from fimlora.statistics import Estimator, Statistics
from fimlora.tape import Rerun, Tape
from fimlora.targets import count_base_parameters, find_left_out, find_targets, locate
from fimlora.weights import Weights


def measure_streamed(
    model_path: str | Path,
    batches: Iterable[Mapping[str, Any]],
    *,
    model_class: Any = None,
    config: Any = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    target_modules: str | Sequence[str] | None = None,
    n_batches: int = 8,
    estimator: str = "exact",
    rank: int = 8,
    seed: int = 0,
    scale: int | float = 2,
    micro_batch_size: int | None = None,
    max_boundary_bytes: int | None = None,
    boundary_folder: str | Path | None = None,
    loss_fn: LossFn | None = None,
    on_batch: OnBatch | None = None,
) -> Statistics:
    """Do what `fimlora.measure` does with a model of any size, from its folder.

    The statistics are those of the resident model to the last bit, on the same device and
    in the same dtype, if its weights are aligned as torch allocates them; from_pretrained may
    leave them where the file has them, and a matrix kernel may then round otherwise. Memory holds two blocks, the embedding or the output head while they
    run, the inputs of all blocks up to ``max_boundary_bytes``, and what one micro-batch
    needs inside one block. Dropout is off: its random numbers would come in another order.

    Args:
        model_path: A folder as ``save_pretrained`` writes it, with safetensors weights.
        batches: As for `fimlora.measure`; they are all read before the first one runs.
        model_class: A model class or auto class of transformers, such as
            ``AutoModelForSequenceClassification``; ``None`` for the one the config names.
        config: The model's config, if it is not the folder's own (another ``num_labels``).
        dtype: Dtype to run in; ``None`` for the config's.
        device: Where blocks compute.
        target_modules: As for `fimlora.measure`.
        n_batches: As for `fimlora.measure`.
        estimator: As for `fimlora.measure`.
        rank: As for `fimlora.measure`.
        seed: As for `fimlora.measure`; also of weights that the checkpoint lacks (a fresh
            head), which are those of ``from_pretrained`` after ``torch.manual_seed(seed)``.
        scale: As for `fimlora.measure`.
        micro_batch_size: As for `fimlora.measure`.
        max_boundary_bytes: How much of the blocks' inputs may stay in host memory; the
            rest goes to disk. ``None`` for all.
        boundary_folder: Where on disk; ``None`` for the system's temporary folder.
        loss_fn: As for `fimlora.measure`.
        on_batch: Called with (batches done, batches expected) after each block. All batches
            advance together, so "done" is the share of the work; numbers may repeat.

    Returns:
        The statistics of the batches that were used.

    Raises:
        EmptyCalibration: There is no batch, or no example with a label.
        InvalidOption: An argument is outside what is allowed.
        InvalidCheckpoint: The weights cannot be read, or do not fit the model.
        UnsupportedModule: The model cannot be cut into blocks that run one by one.
    """  # noqa: DOC502 - the helpers raise
    check_at_least_one(n_batches=n_batches, rank=rank, micro_batch_size=micro_batch_size)
    check_scale(scale)
    kind = parse_estimator(estimator)
    folder, on = Path(model_path), torch.device(device)
    checkpoint = Checkpoint(folder)
    model = build_skeleton(folder, model_class=model_class, config=config, dtype=dtype)
    n_parameters = count_base_parameters(model)
    modules = find_targets(model, target_modules)
    units = find_units(model, modules)
    weights = Weights(model, checkpoint, units, on)
    spill = Path(boundary_folder) if boundary_folder is not None else None
    with (
        weights.attached(seed=seed),
        frozen(model, train_mode=False, seed=seed),
        boundary_store(max_boundary_bytes, spill) as store,
        stops(units),
    ):
        items = [as_batch(item) for item in itertools.islice(batches, n_batches)]
        if not items:
            raise EmptyCalibration("the loader gave no batch")
        loss = choose_loss(model, items[0], loss_fn)
        found = [labelled_examples(item, loss, on) for item in items]
        if not any(len(examples) for examples in found):
            raise EmptyCalibration("no example carries a label")
        sweep = _Sweep(model, modules, units, weights, store, loss, on, on_batch, found)
        recorders = sweep.measure(
            micro_batch_size, kind=kind, options={"rank": rank, "seed": seed}
        )
    return Statistics(
        modules=modules,
        estimator=kind,
        n_examples=sum(len(examples) for examples in found),
        n_batches=sum(len(examples) > 0 for examples in found),
        base_parameters=n_parameters,
        loss=loss.kind.value,
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        scale=scale,
        train_mode=False,
        rank=rank if kind.has_sampled else None,
        seed=seed if kind.has_sampled else None,
        row_energies=_gather(modules, [r.row_energies() for r in recorders]),
        example_energies=_gather(modules, [r.example_energies() for r in recorders]),
        squared_gradients=_gather(modules, [r.squared_gradients() for r in recorders]),
        not_targeted=find_left_out(model, target_modules),
    )


def _gather(modules: Sequence[TargetModule], parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Join what the units' recorders have, in the model's order."""
    joined = {name: value for part in parts for name, value in part.items()}
    return {module.name: joined[module.name] for module in modules if module.name in joined}


class _MixedExamplesError(Exception):
    """A target's input does not have the examples as its first axis."""


@dataclass
class _Part:
    """A micro-batch on its way through the model."""

    examples: Examples
    forward: Pass
    tape: Tape


@dataclass
class _Sweep:
    """One calibration: forward through all units, and back."""

    model: nn.Module
    modules: tuple[TargetModule, ...]
    units: Mapping[str, nn.Module]
    weights: Weights
    store: BoundaryStore
    loss: Loss
    device: torch.device
    on_batch: OnBatch | None
    batches: list[Examples]
    order: list[str] = field(default_factory=list)

    def measure(
        self, size: int | None, *, kind: Estimator, options: dict[str, int]
    ) -> list[Recorder]:
        """Go through the model and back.

        Args:
            size: Examples per micro-batch.
            kind: The estimator.
            options: Options of the recorders.

        Returns:
            A recorder for every unit with targets.
        """
        parts: list[list[_Part]] = []
        one_at_a_time = False
        try:
            try:
                parts = self._cut(size)
                self._go_forward(parts)
            except _MixedExamplesError:
                self._abandon(parts)
                one_at_a_time = True
                parts = self._cut(1)
                self._go_forward(parts)
            return self._go_backward(parts, one_at_a_time, kind=kind, options=options)
        finally:
            self._abandon(parts)

    def _cut(self, size: int | None) -> list[list[_Part]]:
        self.order.clear()
        return [
            [
                self._part(examples.part(start, size or len(examples)), f"batch {number}")
                for start in range(0, len(examples), size or len(examples))
            ]
            for number, examples in enumerate(self.batches, 1)
            if len(examples)
        ]

    def _part(self, examples: Examples, where: str) -> _Part:
        tape = Tape(self.store)

        def body() -> Tensor:
            losses = example_losses(self.model, self.loss, examples, self.device, where)
            if losses.requires_grad:
                # The sum, not the mean: each example's gradient comes out unscaled.
                losses.sum().backward(retain_graph=tape.has_glue)
            return losses.detach()

        return _Part(examples, Pass(body), tape)

    @staticmethod
    def _abandon(parts: list[list[_Part]]) -> None:
        for part in itertools.chain(*parts):
            part.forward.abandon()

    def _go_forward(self, parts: list[list[_Part]]) -> None:
        """Take all parts through all units, and from the loss to the last unit's outputs."""
        guess = list(self.units)
        self.weights.prefetch(guess[0])
        flat = [*itertools.chain(*parts)]
        for part in flat:
            part.forward.advance()
        is_kept = False
        while (unit := _next_unit(flat)) is not None:
            if unit in self.order:
                raise UnsupportedModule(f"block {unit!r} runs twice in a pass")
            self.order.append(unit)
            self.weights.release_ends()
            self.weights.load(unit)
            if following := guess[guess.index(unit) + 1 :]:
                self.weights.prefetch(following[0])
            targets = targets_of(unit, self.modules)
            is_kept |= bool(targets)
            for part in flat:
                self._forward_unit(part, unit, targets, is_kept=is_kept)
            self._report(len(self.order))
        self.weights.release_ends()
        ran = {module.name for unit in self.order for module in targets_of(unit, self.modules)}
        for module in self.modules:
            if module.name not in ran:
                raise MissingGradient(
                    f"target module {module.name!r} did not run in the forward pass; leave it out"
                )
        for number, some in enumerate(parts, 1):
            losses = [part.forward.result for part in some if part.forward.result is not None]
            self._check((), torch.cat(losses), number)

    def _forward_unit(
        self, part: _Part, unit: str, targets: Sequence[TargetModule], *, is_kept: bool
    ) -> None:
        n = len(part.examples)

        def look(name: str, x: Tensor) -> tuple[Tensor, ...]:
            if n > 1 and x.shape[0] != n:
                raise _MixedExamplesError(name)
            return ()

        call = part.forward.call
        assert call is not None
        located = {module.name: locate(self.model, module) for module in targets}
        with watch_modules(located, look, lambda name, calls: None):  # noqa: ARG005
            outputs = part.tape.run(self.units[unit], call, keeps=is_kept)
        del call
        part.forward.advance(outputs)

    def _go_backward(
        self,
        parts: list[list[_Part]],
        one_at_a_time: bool,
        *,
        kind: Estimator,
        options: dict[str, int],
    ) -> list[Recorder]:
        """Take all parts back from the last unit to the lowest with a target."""
        n_kept = len(next(itertools.chain(*parts)).tape.steps)
        recorders = []
        kept = self.order[len(self.order) - n_kept :]
        for done, unit in enumerate(reversed(kept), 1):
            self.weights.load(unit)
            if done < n_kept:
                self.weights.prefetch(kept[-done - 1])
            targets = targets_of(unit, self.modules)
            recorder = Recorder(
                targets,
                estimator=kind,
                rank=options["rank"],
                seed=options["seed"],
                device=self.device,
            )
            recorder.one_at_a_time = one_at_a_time
            self._reverse_unit(unit, targets, recorder, parts)
            if targets:
                recorders.append(recorder)
            self._report(len(self.order) + 3 * done)
        if self.on_batch is not None:
            self.on_batch(len(self.batches), len(self.batches))
        return recorders

    def _reverse_unit(
        self,
        unit: str,
        targets: tuple[TargetModule, ...],
        recorder: Recorder,
        parts: list[list[_Part]],
    ) -> None:
        located = {module.name: locate(self.model, module) for module in targets}
        with watch_modules(located, recorder.keep, recorder.on_gradients) as watch:
            for number, some in enumerate(parts, 1):
                for part in some:
                    step, is_kept = part.tape.steps.pop(), False
                    while not is_kept:
                        watch.begin_forward()
                        recorder.begin(part.examples.weights)
                        rerun = Rerun(self.units[unit], step)
                        is_kept = not recorder.adapt(watch.calls)
                    watch.backward(*rerun.roots, gradients=rerun.gradients)
                    recorder.commit()
                    rerun.pass_on()
                if targets:
                    self._check(targets, torch.empty(0), number, recorder.end_batch())

    def _check(
        self,
        targets: tuple[TargetModule, ...],
        losses: Tensor,
        number: int,
        checks: Tensor | None = None,
    ) -> None:
        if losses.is_meta:
            raise UnsupportedModule("a weight is used outside of the module that holds it")
        where = f"batch {number} of {len(self.batches)}"
        check_finite(targets, losses, torch.empty(0) if checks is None else checks, where)

    def _report(self, work: int) -> None:
        """Tell how far it is; going back through a unit is three times the work."""
        if self.on_batch is not None:
            n = len(self.batches)
            self.on_batch(min(n - 1, n * work // (4 * len(self.units))), n)


def _next_unit(parts: Sequence[_Part]) -> str | None:
    """Name the unit that all parts wait at; ``None`` when all have ended."""
    names = {part.forward.call.unit if part.forward.call else None for part in parts}
    if len(names) > 1:
        raise UnsupportedModule(f"batches take different ways through the model: {names}")
    return names.pop()
