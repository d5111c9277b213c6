"""A micro-batch on its way through a streamed model, and back."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fimlora.errors import UnsupportedModule
from fimlora.measuring.examples.examples import Examples
from fimlora.measuring.recording.recorder import Recorder
from fimlora.measuring.streamed.boundary_store import BoundaryStore
from fimlora.measuring.streamed.paused_forward import PausedForward
from fimlora.measuring.streamed.recompute import BlockCalls
from fimlora.model.experts.routed import Routed, mixes_examples
from fimlora.model.hooks import Watch, watch_modules
from fimlora.model.pass_state import Change, PassState


class MixedExamplesError(Exception):
    """A target's input does not have the examples as its first axis."""


@dataclass
class MicroBatch:
    """A micro-batch.

    Attributes:
        examples: Its examples.
        forward: Its pass through the model, up to the losses.
        calls: What that pass has left behind.
        state: What passes begin from.
        changes: What this pass has changed of it.
        ends: The batch that it is the last part of, if it is.
        shown_to: Shows the hidden states around a block to whoever records them.
    """

    examples: Examples
    forward: PausedForward
    calls: BlockCalls
    state: PassState
    changes: list[Change] = field(default_factory=list)
    ends: Examples | None = None
    shown_to: Callable[[Examples, Examples | None], AbstractContextManager[None]] | None = None

    @classmethod
    def of(
        cls,
        examples: Examples,
        losses: Callable[[], Sequence[Tensor]],
        store: BoundaryStore,
        state: PassState,
        *,
        goes_back: bool = True,
    ) -> "MicroBatch":
        """Make one that has not begun.

        Args:
            examples: Its examples.
            losses: Runs the model's forward pass; gives its losses, and those of the null.
            store: Holds what blocks are called with.
            state: What passes begin from.
            goes_back: Whether its losses will go back.

        Returns:
            The micro-batch.
        """
        calls = BlockCalls(store)

        def body() -> Tensor:
            with torch.set_grad_enabled(goes_back):
                found = losses()
            if found[0].requires_grad:
                # The sum, not the mean: each example's gradient comes out unscaled.
                calls.backward([some.sum() for some in found])
            return found[0].detach()

        return cls(examples, PausedForward(body), calls, state)

    def advance(self, outputs: object = None) -> None:
        """Go on to the next block, or to the end.

        Args:
            outputs: What the block returns that it waits at.
        """
        self.state.set(self.changes)
        self.forward.advance(outputs)
        self.changes = self.state.changes()

    def run(self, block: nn.Module, targets: Mapping[str, nn.Module], *, keeps: bool) -> object:
        """Run the block that it waits at; the pass waits on for what the block returned.

        Args:
            block: The block.
            targets: Its target modules by name.
            keeps: Whether the block will be run again.

        Returns:
            What to advance the pass with.

        Raises:
            MixedExamplesError: The examples must go one at a time.
        """  # noqa: DOC502 - `look` raises
        n, call = len(self.examples), self.forward.call
        assert call is not None

        def look(name: str, x: Tensor | Routed) -> tuple[Tensor, ...]:
            if mixes_examples(x, n):
                raise MixedExamplesError(name)
            return ()

        self.state.set(self.changes, within=block)
        showing = self.shown_to(self.examples, self.ends) if self.shown_to else nullcontext()
        with (
            showing,
            watch_modules(targets, look, lambda name, calls: None),  # noqa: ARG005
        ):
            return self.calls.run(block, call, keeps=keeps)

    def run_recorded(
        self,
        block: nn.Module,
        targets: Mapping[str, nn.Module],
        recorder: Recorder,
        *,
        is_whole: bool,
    ) -> object:
        """Run the block that it waits at, and record what its targets are given.

        Args:
            block: The block.
            targets: Its target modules by name.
            recorder: Records them.
            is_whole: Whether the micro-batch is a whole batch.

        Returns:
            What to advance the pass with.

        Raises:
            MixedExamplesError: The examples must go one at a time.
        """
        call = self.forward.call
        assert call is not None
        self.state.set(self.changes, within=block)
        self._begin(recorder, is_whole=is_whole)
        with (
            torch.no_grad(),
            watch_modules(
                targets, recorder.keep, recorder.on_gradients, on_input=recorder.on_input
            ) as watch,
        ):
            watch.begin_forward()
            made = self.calls.run(block, call, keeps=False)
        if recorder.adapt(watch.calls):
            raise MixedExamplesError(call.block)
        recorder.commit()
        return made

    def go_back(
        self, block: nn.Module, watch: Watch, recorder: Recorder, *, is_whole: bool
    ) -> None:
        """Run the last block again that has not gone back, and record its targets.

        Args:
            block: The block.
            watch: Watches its targets for the recorder.
            recorder: Records them.
            is_whole: Whether the micro-batch is a whole batch.
        """
        is_kept = False
        self.state.set(self.changes, within=block)
        while not is_kept:
            watch.begin_forward()
            self._begin(recorder, is_whole=is_whole)
            recomputation = self.calls.recompute_last(block)
            is_kept = not recorder.adapt(watch.calls)
        gradients = [recomputation.backward(watch)]
        for flow in range(1, self.calls.n_flows):
            recorder.begin_null()
            gradients.append(recomputation.backward(watch, flow))
        recorder.commit()
        self.calls.finish_last(gradients)

    def _begin(self, recorder: Recorder, *, is_whole: bool) -> None:
        recorder.begin(
            self.examples.weights,
            self.examples.token_mask,
            is_whole=is_whole,
            numbers=self.examples.numbers,
            label_mask=self.examples.label_mask,
        )

    def give_up(self) -> None:
        """End the pass where it stands, and let go of what it has left behind."""
        self.forward.abandon()
        self.calls.forget()


def next_block(passes: Sequence[PausedForward]) -> str | None:
    """Name the block that all passes wait at.

    Args:
        passes: Passes through one model.

    Returns:
        The block's name; ``None`` when all have ended.

    Raises:
        UnsupportedModule: They wait at different ones.
    """
    names = {one.call.block if one.call else None for one in passes}
    if len(names) > 1:
        raise UnsupportedModule(f"batches take different ways through the model: {names}")
    return names.pop()
