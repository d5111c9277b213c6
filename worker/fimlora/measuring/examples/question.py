"""A short forward pass that is run for what it tells about a model, and not to be measured."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fimlora.errors import FimloraError
from fimlora.measuring.examples.trace import Trace
from fimlora.memory.out_of_memory import is_out_of_memory


@dataclass
class Question:
    """A forward pass.

    Attributes:
        run: Runs it.
        trace: Takes note of what its modules give, if anybody wants to know.
        answer: What it gave.
        error: What it ended with instead; a model may not run on so few tokens.
    """

    run: Callable[[], Tensor]
    trace: Trace | None = None
    answer: Tensor | None = None
    error: Exception | None = None

    def fail(self, error: Exception) -> None:
        """Take note of an error that may be an answer.

        Args:
            error: The error. What has a name, or is about memory, is raised again.

        Raises:
            FimloraError: It is one of ours.
        """  # noqa: DOC502 - raised again
        if isinstance(error, FimloraError) or is_out_of_memory(error):
            raise error
        self.error = error
