"""Take all calibration batches through a model block by block: forward, and back.

Forward, every batch goes through a block before the next block is loaded, and what blocks are
called with is kept. The model's own head and loss give the gradients behind the last block;
then the blocks come back in reverse, and each is run again with its targets being recorded.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from fimlora.errors import UnsupportedModule
from fimlora.measuring.examples.examples import Examples, check_finite
from fimlora.measuring.recording.layers_seen import showing_layers, watching_layers
from fimlora.measuring.recording.recorder import Recorder
from fimlora.measuring.streamed.block_weights import BlockWeights
from fimlora.measuring.streamed.blocks import targets_of
from fimlora.measuring.streamed.boundary_store import BoundaryStore
from fimlora.measuring.streamed.micro_batch import (
    MicroBatch,
    MixedExamplesError,
    next_block,
)
from fimlora.measuring.streamed.progress import LayerwiseProgress
from fimlora.measuring.streamed.side_pass import (
    PaddingReadError,
    SidePass,
    SideQuestions,
    WholeSliceError,
    uncut_from,
)
from fimlora.model.hooks import watch_modules
from fimlora.model.pass_state import PassState
from fimlora.model.random_states import drawing_nothing
from fimlora.model.targets import locate
from fimlora.plan import TargetModule
from fimlora.statistics.statistics import Groups

Losses = Callable[[Examples, str], Sequence[Tensor]]
NewRecorder = Callable[[Sequence[TargetModule]], Recorder]
# Takes a block's recorder, the number of examples, and the block's target modules.
ResultsOf = Callable[[Recorder, int, Mapping[str, nn.Module]], Groups]


@dataclass
class LayerwiseRun:
    """One calibration: forward through all blocks, and back.

    Attributes:
        model: The model; passes stop at its blocks.
        modules: Its target modules.
        blocks: Its blocks by name.
        weights: Gives blocks their weights.
        store: Keeps what blocks are called with.
        batches: The labelled examples of each calibration batch.
        state: What passes begin from.
        questions: What else is asked on the way.
        losses: Runs the model's forward pass over examples, which an error calls by a name;
            gives their losses, and those of the null.
        new_recorder: Makes a recorder for the targets of one block.
        new_layer_recorder: Makes one of what they show of their layer, if that is recorded.
        progress: How far it is.
        goes_back: Whether it goes back; if not, targets are recorded on the way forward.
        results_of: Gives what a block's recorder has come to.
        order: The blocks that ran, in that order.
        layers: What was recorded of them on the way forward.
        largest: Examples that went through the model at once.
    """

    model: nn.Module
    modules: tuple[TargetModule, ...]
    blocks: Mapping[str, nn.Module]
    weights: BlockWeights
    store: BoundaryStore
    batches: Sequence[Examples]
    state: PassState
    questions: SideQuestions
    losses: Losses
    new_recorder: NewRecorder
    new_layer_recorder: Callable[[Sequence[TargetModule]], Recorder | None]
    progress: LayerwiseProgress
    goes_back: bool = True
    results_of: ResultsOf = Recorder.groups
    order: list[str] = field(default_factory=list, init=False)
    layers: dict[str, Recorder] = field(default_factory=dict, init=False)
    largest: int = field(default=0, init=False)

    def measure(self, micro_batch_size: int | None) -> list[Groups]:
        """Go through the model and back, as far as is asked.

        Args:
            micro_batch_size: Examples per pass; ``None`` for whole batches.

        Returns:
            What was recorded, for every block with targets, in the order it was.
        """
        self.progress.resume()
        while True:
            uncut, one_at_a_time = self.progress.uncut, self.progress.one_at_a_time
            if uncut is not None:
                self.batches = uncut_from(self.batches, uncut)
            try:
                return self._go(1 if one_at_a_time else micro_batch_size)
            except MixedExamplesError:
                self.progress.one_at_a_time = True
            except PaddingReadError as found:
                self.progress.uncut = found.number
            except WholeSliceError:
                self.questions.whole = True
            self.progress.begin_anew()

    def _go(self, micro_batch_size: int | None) -> list[Groups]:
        self.order.clear()
        self.layers.clear()
        self.largest = 0
        batches = [
            self._cut(examples, micro_batch_size, f"batch {number}")
            for number, examples in enumerate(self.batches, 1)
            if len(examples)
        ]
        try:
            if self.progress.n_left:
                self._look_and_go_forward(batches)
            if self.goes_back:
                return self._go_backward(batches)
            self.progress.report_end()
            return self.progress.found
        finally:
            for micro_batch in itertools.chain(*batches):
                micro_batch.give_up()

    def _cut(self, examples: Examples, size: int | None, where: str) -> list[MicroBatch]:
        parts = list(examples.parts(size or len(examples)))
        self.largest = max(self.largest, *map(len, parts))
        found = [
            MicroBatch.of(
                part,
                partial(self.losses, part, where),
                self.store,
                self.state,
                goes_back=self.goes_back,
            )
            for part in parts
        ]
        found[-1].ends = examples
        return found

    def _look_and_go_forward(self, batches: list[list[MicroBatch]]) -> None:
        """Go forward, and ask on the way what no earlier pass has answered."""
        if self.progress.stop is not None:
            self._go_forward(batches, [])
            return
        sides = [
            SidePass(question, failure, self.questions.tracer, self.state, self.store)
            for question, failure in self.questions.ask(self.batches)
        ]
        try:
            with self.questions.watching(), self._drawing_nothing(batches, sides):
                self._go_forward(batches, sides)
        finally:
            for side in sides:
                side.forward.abandon()
        self.questions.judge()

    def _drawing_nothing(
        self, batches: list[list[MicroBatch]], sides: Sequence[SidePass]
    ) -> AbstractContextManager[object]:
        """Refuse a model that draws random numbers in the block; a loss of one's own may."""
        if self.questions.loss.loss_fn is not None:
            return nullcontext()
        parts: list[MicroBatch | SidePass] = [*itertools.chain(*batches), *sides]
        return drawing_nothing(
            self.model,
            self.questions.device,
            lambda: [c for part in parts for c in part.changes],
        )

    def _go_forward(self, batches: list[list[MicroBatch]], sides: Sequence[SidePass]) -> None:
        """Go through all blocks, and from the loss to the last block's outputs.

        Blocks that an earlier run has finished are left out, with all that is behind them.
        """
        stop, micro_batches = self.progress.stop, [*itertools.chain(*batches)]
        all_parts: list[MicroBatch | SidePass] = [*sides, *micro_batches]
        self.weights.prefetch(next(iter(self.blocks)))
        for part in all_parts:
            part.advance()
        while (block := next_block([part.forward for part in all_parts])) not in {None, stop}:
            assert block is not None
            if self.goes_back:
                self._run_block(block, all_parts)
                self.progress.report_forward(len(self.order))
            else:
                self._record_block(block, sides, batches)
        self.weights.release_embeddings_and_head()
        if stop is None:
            self._check_losses(batches)
            return
        for part in micro_batches:
            part.forward.abandon()
        self.progress.restore([part.calls for part in micro_batches])

    def _run_block(self, name: str, all_parts: Sequence[MicroBatch | SidePass]) -> None:
        """Run a block for all passes that wait at it, and let them go on."""
        following = self._enter(name)
        block, targets = self.blocks[name], self._located(name)
        self._record_layer(name, all_parts)
        keeps = any(targets_of(done, self.modules) for done in self.order)
        made: Iterable[object] = (part.run(block, targets, keeps=keeps) for part in all_parts)
        if following is None:  # what comes now may be a head as large as several blocks
            made = list(made)
            self.weights.mark_reusable(name)
        for part, outputs in zip(all_parts, made, strict=True):
            part.advance(outputs)

    def _record_layer(self, name: str, all_parts: Sequence[MicroBatch | SidePass]) -> None:
        """Let the passes that are measured show the block's hidden states, if these are asked for.

        The second run, on the way back, leaves out what no gradient needs of its output.
        """
        targets = targets_of(name, self.modules)
        recorder = self.new_layer_recorder(targets)
        shown_to = None
        if recorder is not None:
            self.layers[name] = recorder
            shown_to = partial(showing_layers, self.model, targets, recorder)
        for part in all_parts:
            if isinstance(part, MicroBatch):
                part.shown_to = shown_to

    def _record_block(
        self, name: str, sides: Sequence[SidePass], batches: list[list[MicroBatch]]
    ) -> None:
        """Run a block for all passes, record its targets on the way, and let them go on.

        It has been recorded already if an earlier run has finished it.
        """
        following = self._enter(name)
        is_new = len(self.order) > self.progress.n_done
        targets = targets_of(name, self.modules) if is_new else ()
        recorder = self.new_recorder(targets)
        recorder.one_at_a_time = self.progress.one_at_a_time
        found: list[Groups] = []
        made: Iterable[object] = self._recorded(name, recorder, targets, sides, batches, found)
        if following is None:
            made = list(made)
            self.weights.mark_reusable(name)
        all_parts: list[MicroBatch | SidePass] = [*sides, *itertools.chain(*batches)]
        for part, outputs in zip(all_parts, made, strict=True):
            part.advance(outputs)
        if is_new:
            self.progress.finish_forward(found[0] if targets else None)

    def _recorded(
        self,
        name: str,
        recorder: Recorder,
        targets: tuple[TargetModule, ...],
        sides: Sequence[SidePass],
        batches: list[list[MicroBatch]],
        found: list[Groups],
    ) -> Iterator[object]:
        """Run a block for one pass after the other; what was recorded is there at the end."""
        block, located = self.blocks[name], self._located(name) if targets else {}
        for side in sides:
            yield side.run(block, None, keeps=False)
        used = [examples for examples in self.batches if len(examples)]
        for number, (parts, examples) in enumerate(zip(batches, used, strict=True), 1):
            for part in parts:
                with watching_layers(self.model, targets, recorder):
                    made = part.run_recorded(block, located, recorder, is_whole=len(parts) == 1)
                yield made
            checks = recorder.end_batch(examples.order) if targets else torch.empty(0)
            check_finite(targets, torch.empty(0), checks, self._where(number))
        found.append(self.results_of(recorder, sum(map(len, used)), located))

    def _enter(self, name: str) -> str | None:
        """Load a block that all passes wait at; gives the name of the one that may follow."""
        if name in self.order:
            raise UnsupportedModule(f"block {name!r} runs twice in a pass; measure it resident")
        self.order.append(name)
        return self._load(name)

    def _load(self, block: str) -> str | None:
        """Load a block, and begin to read the one that will follow; gives that one's name."""
        self.weights.release_embeddings_and_head()
        self.weights.load(block)
        guess = list(self.blocks)
        following = next(iter(guess[guess.index(block) + 1 :]), None)
        if following not in {None, self.progress.stop}:
            assert following is not None
            self.weights.prefetch(following)
        return following

    def _located(self, block: str) -> dict[str, nn.Module]:
        targets = targets_of(block, self.modules)
        return {module.name: locate(self.model, module) for module in targets}

    def _go_backward(self, batches: list[list[MicroBatch]]) -> list[Groups]:
        """Go back from the last block to the lowest with a target."""
        passes = [part.calls for part in itertools.chain(*batches)]
        left = self.order[len(self.order) - len(passes[0].calls) :]
        while left:
            block = left.pop()
            self.weights.load(block)
            if left:
                self.weights.prefetch(left[-1])
            groups = self._go_back_through(block, batches)
            self.progress.finish(block, groups, passes, n_left=len(left))
        self.progress.report_end()
        return self.progress.found

    def _go_back_through(self, block: str, batches: list[list[MicroBatch]]) -> Groups | None:
        """Run a block again for all passes; gives what was recorded if it has targets."""
        targets = targets_of(block, self.modules)
        recorder = self.new_recorder(targets)
        recorder.one_at_a_time = self.progress.one_at_a_time
        used = [examples for examples in self.batches if len(examples)]
        if block in self.layers:
            recorder.take_layers(self.layers.pop(block))
        with watch_modules(self._located(block), recorder.keep, recorder.on_gradients) as watch:
            for number, (parts, examples) in enumerate(zip(batches, used, strict=True), 1):
                for part in parts:
                    part.go_back(self.blocks[block], watch, recorder, is_whole=len(parts) == 1)
                if targets:
                    checks = recorder.end_batch(examples.order)
                    check_finite(targets, torch.empty(0), checks, self._where(number))
        n_examples = sum(map(len, self.batches))
        located = self._located(block)
        return self.results_of(recorder, n_examples, located) if targets else None

    def _check_losses(self, batches: list[list[MicroBatch]]) -> None:
        for number, parts in enumerate(batches, 1):
            found = [part.forward.result for part in parts if part.forward.result is not None]
            losses = torch.cat(found)
            if losses.is_meta:
                raise UnsupportedModule("a weight is used outside of the module that holds it")
            check_finite((), losses, torch.empty(0), self._where(number))

    def _where(self, number: int) -> str:
        return f"batch {number} of {len(self.batches)}"
