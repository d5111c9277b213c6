"""Take all calibration batches through a model unit by unit: forward, and back.

Forward, every batch goes through a unit before the next unit is loaded, and what units are
called with is kept. The model's own head and loss give the gradients behind the last unit;
then the units come back in reverse, and each is run again with its targets being recorded.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fimlora.errors import MissingGradient, UnsupportedModule
from fimlora.measuring.examples.examples import Examples, check_finite, example_losses
from fimlora.measuring.examples.losses import Loss
from fimlora.measuring.recording.recorder import Recorder
from fimlora.measuring.resume.progress_file import SavedSums
from fimlora.measuring.settings import OnBatch
from fimlora.measuring.streamed.block_weights import Weights
from fimlora.measuring.streamed.blocks import targets_of
from fimlora.measuring.streamed.boundary_store import BoundaryStore
from fimlora.measuring.streamed.micro_batch import MixedExamplesError, Part, next_unit
from fimlora.measuring.streamed.progress import SweepProgress
from fimlora.measuring.streamed.recompute import Rerun, Tape
from fimlora.model.hooks import watch_modules
from fimlora.model.targets import locate
from fimlora.plan import TargetModule
from fimlora.statistics.statistics import Groups

NewRecorder = Callable[[Sequence[TargetModule]], Recorder]


@dataclass
class Sweep:
    """One calibration: forward through all units, and back.

    Attributes:
        model: The model; passes stop at its units.
        modules: Its target modules.
        units: Its units by name.
        weights: Gives units their weights.
        store: Keeps what units are called with.
        loss: The loss.
        device: Where units compute.
        on_batch: Called as `fimlora.measure_streamed` says.
        batches: The labelled examples of each calibration batch.
        new_recorder: Makes a recorder for the targets of one unit.
        saved: The run's file, if it has one.
        order: The units that ran, in that order.
        largest: Examples that went through the model at once.
        progress: How far the way back is.
    """

    model: nn.Module
    modules: tuple[TargetModule, ...]
    units: Mapping[str, nn.Module]
    weights: Weights
    store: BoundaryStore
    loss: Loss
    device: torch.device
    on_batch: OnBatch | None
    batches: list[Examples]
    new_recorder: NewRecorder
    saved: SavedSums | None = None
    order: list[str] = field(default_factory=list)
    largest: int = 0
    progress: SweepProgress = field(default_factory=SweepProgress)

    def measure(self, micro_batch_size: int | None) -> list[Groups]:
        """Go through the model and back.

        Args:
            micro_batch_size: Examples per pass; ``None`` for whole batches.

        Returns:
            What was recorded, for every unit with targets, the last unit first.
        """
        parts: list[list[Part]] = []
        self.progress = SweepProgress.load(self.saved)
        self._tell_resumed()
        try:
            try:
                parts = self._cut(1 if self.progress.one_at_a_time else micro_batch_size)
                self._go_forward(parts)
            except MixedExamplesError:
                self._abandon(parts)
                for part in itertools.chain(*parts):
                    part.tape.give_up()
                self.progress.one_at_a_time = True
                parts = self._cut(1)
                self._go_forward(parts)
            return self._go_backward(parts)
        finally:
            self._abandon(parts)

    def _cut(self, size: int | None) -> list[list[Part]]:
        self.order.clear()
        self.largest = 0
        return [
            [
                self._part(part, f"batch {number}")
                for part in examples.parts(size or len(examples))
            ]
            for number, examples in enumerate(self.batches, 1)
            if len(examples)
        ]

    def _part(self, examples: Examples, where: str) -> Part:
        self.largest = max(self.largest, len(examples))
        return Part.of(
            examples,
            lambda: example_losses(self.model, self.loss, examples, self.device, where),
            self.store,
        )

    @staticmethod
    def _abandon(parts: list[list[Part]]) -> None:
        for part in itertools.chain(*parts):
            part.forward.abandon()

    def _go_forward(self, parts: list[list[Part]]) -> None:
        """Take all parts through all units, and from the loss to the last unit's outputs."""
        if not self.progress.n_left:
            return
        # Units that an earlier run has finished are left out, with all that is behind them.
        stop, guess = self.progress.stop, list(self.units)
        self.weights.prefetch(guess[0])
        flat = [*itertools.chain(*parts)]
        for part in flat:
            part.forward.advance()
        is_kept = False
        while (unit := next_unit(flat)) not in {None, stop}:
            assert unit is not None
            if unit in self.order:
                raise UnsupportedModule(
                    f"block {unit!r} runs twice in a pass; measure it resident"
                )
            self.order.append(unit)
            self.weights.release_ends()
            self.weights.load(unit)
            following = guess[guess.index(unit) + 1 :]
            if following and following[0] != stop:
                self.weights.prefetch(following[0])
            targets = targets_of(unit, self.modules)
            located = {module.name: locate(self.model, module) for module in targets}
            is_kept |= bool(targets)
            block, keeps = self.units[unit], is_kept
            made: Iterable[object] = (part.run(block, located, keeps=keeps) for part in flat)
            if not following:  # what comes now may be a head as large as several blocks
                made = list(made)
                self.weights.retire(unit)
            for part, outputs in zip(flat, made, strict=True):
                part.forward.advance(outputs)
            self._report(len(self.order))
        self.weights.release_ends()
        if stop is not None:
            self._abandon(parts)
            self.progress.restore([part.tape for part in flat])
            return
        ran = {module.name for unit in self.order for module in targets_of(unit, self.modules)}
        for module in self.modules:
            if module.name not in ran:
                raise MissingGradient(
                    f"target module {module.name!r} did not run in the forward pass; leave it out"
                )
        for number, some in enumerate(parts, 1):
            losses = [part.forward.result for part in some if part.forward.result is not None]
            self._check((), torch.cat(losses), number)

    def _go_backward(self, parts: list[list[Part]]) -> list[Groups]:
        """Take all parts back from the last unit to the lowest with a target."""
        tapes = [part.tape for part in itertools.chain(*parts)]
        n_examples = sum(len(examples) for examples in self.batches)
        kept = self.order[len(self.order) - len(tapes[0].steps) :]
        while kept:
            unit = kept.pop()
            self.weights.load(unit)
            if kept:
                self.weights.prefetch(kept[-1])
            targets = targets_of(unit, self.modules)
            recorder = self.new_recorder(targets)
            recorder.one_at_a_time = self.progress.one_at_a_time
            self._reverse_unit(unit, targets, recorder, parts)
            groups = recorder.groups(n_examples) if targets else None
            self.progress.finish(unit, groups, n_left=len(kept))
            self._save_and_report(tapes)
        if self.on_batch is not None:
            self.on_batch(len(self.batches), len(self.batches))
        return self.progress.found

    def _save_and_report(self, tapes: list[Tape]) -> None:
        if self.saved is not None and self.saved.is_due():
            self.saved.save_if_due(*self.progress.state(tapes))
        try:
            self._report(len(self.units) + 3 * self.progress.n_done)
        except BaseException:
            if self.saved is not None:
                self.saved.save_quietly(*self.progress.state(tapes))
            raise

    def _tell_resumed(self) -> None:
        if self.saved is not None and self.progress.n_done:
            work = len(self.units) + 3 * self.progress.n_done
            self.saved.tell_resumed(self._share_of(work), len(self.batches))

    def _reverse_unit(
        self,
        unit: str,
        targets: tuple[TargetModule, ...],
        recorder: Recorder,
        parts: list[list[Part]],
    ) -> None:
        located = {module.name: locate(self.model, module) for module in targets}
        orders = [examples.order for examples in self.batches if len(examples)]
        with watch_modules(located, recorder.keep, recorder.on_gradients) as watch:
            for number, (some, order) in enumerate(zip(parts, orders, strict=True), 1):
                for part in some:
                    step, is_kept = part.tape.steps.pop(), False
                    while not is_kept:
                        watch.begin_forward()
                        recorder.begin(
                            part.examples.weights,
                            part.examples.token_mask,
                            is_whole=len(some) == 1,
                        )
                        rerun = Rerun(self.units[unit], step)
                        is_kept = not recorder.adapt(watch.calls)
                    watch.backward(*rerun.roots, gradients=rerun.gradients)
                    recorder.commit()
                    rerun.pass_on()
                if targets:
                    self._check(targets, torch.empty(0), number, recorder.end_batch(order))

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
            self.on_batch(self._share_of(work), len(self.batches))

    def _share_of(self, work: int) -> int:
        n = len(self.batches)
        return min(n - 1, n * work // (4 * len(self.units)))
