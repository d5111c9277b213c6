"""What is asked of a model that is in memory before a batch of it is measured.

The questions are those of `own_loss` and `padding_check`: short passes without gradients, in
evaluation mode, which leave no trace on the model or on what is drawn at random.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn

from fimlora.measuring.examples.examples import Examples, example_losses
from fimlora.measuring.examples.losses import Loss
from fimlora.measuring.examples.own_loss import OwnLossCheck
from fimlora.measuring.examples.padding_check import PaddingCheck
from fimlora.measuring.examples.question import Question
from fimlora.measuring.examples.trace import Tracer
from fimlora.memory.out_of_memory import named_out_of_memory
from fimlora.model.modes import set_mode
from fimlora.model.pass_state import PassState
from fimlora.model.random_states import (
    drawing_nothing,
    random_states,
    restore_random_states,
)


@dataclass
class FirstLook:
    """Looks at batches before they are measured.

    Attributes:
        model: The model, wrapped by PEFT or not.
        loss: The loss that is measured.
        state: What passes begin from.
        device: The model's device.
        padding: What is known of its padding.
        is_seen: Whether the loss has been compared with the model's own.
        is_checked: Whether it has been on examples that tell a mean over examples from one
            over labels.
    """

    model: nn.Module
    loss: Loss
    state: PassState
    device: torch.device
    padding: PaddingCheck
    is_seen: bool = field(default=False, init=False)
    is_checked: bool = field(default=False, init=False)

    def at(self, examples: Examples, where: str) -> Examples:
        """Look at the next batch.

        Args:
            examples: Its labelled examples.
            where: What to call it in an error.

        Returns:
            The same examples, with or without padding that may be cut.

        Raises:
            UnsupportedModule: The loss that is measured is not the model's own.
        """  # noqa: DOC502 - `judge` raises
        if self.loss.loss_fn is not None or not len(examples):
            return examples
        if not self.is_checked and (not self.is_seen or len(examples) > 1):
            self._check_loss(examples, where)
        pairs = self.padding.ask(
            examples,
            lambda some: example_losses(self.model, self.loss, some, self.device, where),
        )
        self._answer([question for p in pairs for question in (p.narrow, p.wide)], where)
        return self.padding.learn(examples, pairs)

    def drawing_nothing(self) -> AbstractContextManager[object]:
        """Refuse a model that draws random numbers inside the block, unless that is wanted."""
        if self.model.training or self.loss.loss_fn is not None:
            return nullcontext()
        return drawing_nothing(self.model, self.device, self.state.changes)

    def _check_loss(self, examples: Examples, where: str) -> None:
        for whole in (False, True):
            check = OwnLossCheck.of(
                self.model, self.loss, examples, self.device, where, whole=whole
            )
            self._answer([check.ours, check.own], where)
            if not check.failed:
                break
        check.judge()
        self.is_seen, self.is_checked = True, check.is_telling

    def _answer(self, questions: Iterable[Question], where: str) -> None:
        questions, training = [*questions], self.model.training
        if not questions:
            return
        states, tracer = random_states(self.device), Tracer()
        set_mode(self.model, train_mode=False)
        try:
            with (
                torch.no_grad(),
                named_out_of_memory(f"one example of {where} does not fit", self.device),
                tracer.watching(self.model),
            ):
                for question in questions:
                    self.state.set()
                    try:
                        with tracer.into(question.trace), self.drawing_nothing():
                            question.answer = question.run()
                    except Exception as error:
                        question.fail(error)
        finally:
            set_mode(self.model, train_mode=training)
            restore_random_states(states)
