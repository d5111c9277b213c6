"""Passes beside those that are measured: they go through the blocks with them, once, forward.

They ask the same questions as a resident run does, but all at once and of weights that are
there anyway. That padding may be cut is taken for granted until the answers are in.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import NoReturn

import torch
from torch import Tensor, nn

from fimlora.measuring.examples.examples import Examples
from fimlora.measuring.examples.losses import Loss
from fimlora.measuring.examples.own_loss import OwnLossCheck, tells_means_apart
from fimlora.measuring.examples.padding_check import PaddingCheck, Pair
from fimlora.measuring.examples.question import Question
from fimlora.measuring.examples.trace import Tracer
from fimlora.measuring.streamed.boundary_store import BoundaryStore
from fimlora.measuring.streamed.paused_forward import PausedForward
from fimlora.measuring.streamed.recompute import BlockCalls
from fimlora.model.pass_state import Change, PassState


class PaddingReadError(Exception):
    """Padding was cut that the model reads.

    Attributes:
        number: The first batch that may not be cut.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"padding is read in batch {number + 1}")
        self.number = number


class WholeSliceError(Exception):
    """The model does not run on a few tokens of an example."""


class SidePass:
    """A question on its way through the model.

    Args:
        question: The question.
        failure: What to raise where the question fails; ``None`` for its own error.
        tracer: Sees what modules give.
        state: What passes begin from.
        store: Nothing is kept in it.

    Attributes:
        forward: Its pass.
        changes: What it has changed of the state that passes begin from.
    """

    def __init__(
        self,
        question: Question,
        failure: Exception | None,
        tracer: Tracer,
        state: PassState,
        store: BoundaryStore,
    ) -> None:
        self._question, self._tracer, self._state = question, tracer, state
        self._failure = failure
        self._calls, self.changes = BlockCalls(store), list[Change]()
        self.forward = PausedForward(self._body)

    def _body(self) -> Tensor:
        with torch.no_grad():
            self._question.answer = self._question.run()
        return self._question.answer

    def advance(self, outputs: object = None) -> None:
        """Go on to the next block, or to the end.

        Args:
            outputs: What the block returns that it waits at.
        """
        self._state.set(self.changes)
        try:
            with self._tracer.into(self._question.trace):
                self.forward.advance(outputs)
        except Exception as error:
            self._fail(error)
        self.changes = self._state.changes()

    def _fail(self, error: Exception) -> NoReturn:
        """Begin anew where the answer is that it cannot be run like this."""
        self._question.fail(error)
        if self._failure is None:
            raise self._question.named(error)
        raise self._failure from error

    def run(self, block: nn.Module, targets: object, *, keeps: bool) -> object:  # noqa: ARG002
        """Run the block that it waits at; nothing is kept.

        Args:
            block: The block.
            targets: Not looked at.
            keeps: Not heeded.

        Returns:
            What to advance the pass with.
        """
        assert self.forward.call is not None
        self._state.set(self.changes, within=block)
        try:
            with torch.no_grad(), self._tracer.into(self._question.trace):
                return self._calls.run(block, self.forward.call, keeps=False)
        except Exception as error:
            self._fail(error)


@dataclass
class SideQuestions:
    """All that is asked of a streamed model.

    Attributes:
        model: The model.
        loss: The loss that is measured.
        run: Runs the model's forward pass over examples, which an error calls by a name.
        device: Where blocks compute.
        own_loss: The comparison with the model's own loss; ``None`` if there is none.
        pairs: Comparisons of widths, by number of the batch.
        whole: Whether the model is asked for its loss on whole examples.
    """

    model: nn.Module
    loss: Loss
    run: Callable[[Examples], Tensor]
    device: torch.device
    own_loss: OwnLossCheck | None = field(default=None, init=False)
    pairs: dict[int, list[Pair]] = field(default_factory=dict, init=False)
    tracer: Tracer = field(default_factory=Tracer, init=False)
    whole: bool = field(default=False, init=False)

    def ask(self, batches: Sequence[Examples]) -> list[tuple[Question, Exception | None]]:
        """Say what to run.

        Args:
            batches: The labelled examples of each calibration batch.

        Returns:
            Questions, to be answered by passes, and what their failure would mean; none with
            a loss of the caller's own.
        """
        used = [number for number, examples in enumerate(batches) if len(examples)]
        if self.loss.loss_fn is not None:
            return []
        telling = [n for n in used if tells_means_apart(batches[n], self.loss)]
        first = (telling or used)[0]
        self.own_loss = OwnLossCheck.of(
            self.model,
            self.loss,
            batches[first],
            self.device,
            f"batch {first + 1} of {len(batches)}",
            whole=self.whole,
        )
        known = PaddingCheck()
        self.pairs = {n: known.ask(batches[n], self.run) for n in used}
        slices = (self.own_loss.ours, self.own_loss.own)
        asked: list[tuple[Question, Exception | None]] = [
            (question, None if self.whole else WholeSliceError()) for question in slices
        ]
        for number in used:
            for pair in self.pairs[number]:
                asked += [(pair.narrow, PaddingReadError(number)), (pair.wide, None)]
        return asked

    def watching(self) -> AbstractContextManager[None]:
        """Let the passes be traced inside a block."""
        return self.tracer.watching(self.model)

    def judge(self) -> None:
        """Look at the answers.

        Raises:
            PaddingReadError: Some batch may not be cut.
        """
        if self.own_loss is not None:
            self.own_loss.judge()
        for number, pairs in sorted(self.pairs.items()):
            if any(pair.differs() for pair in pairs):
                raise PaddingReadError(number)


def uncut_from(batches: Sequence[Examples], number: int) -> list[Examples]:
    """Leave the padding of batches where it is.

    Args:
        batches: The labelled examples of each batch.
        number: The first batch of these.

    Returns:
        The batches.
    """
    return [
        replace(examples, padding=None) if n >= number else examples
        for n, examples in enumerate(batches)
    ]
