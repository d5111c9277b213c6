"""A short forward pass that is run for what it tells about a model, and not to be measured."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fimlora.errors import FimloraError, UnsupportedModule
from fimlora.measuring.examples.trace import Trace
from fimlora.memory.out_of_memory import is_out_of_memory

# What the code of a model raises, such as for a product of two dtypes.
_OF_THE_MODEL = (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError)
_LONGEST = 300  # characters of its sentence


@dataclass
class Question:
    """A forward pass.

    Attributes:
        run: Runs it.
        trace: Takes note of what its modules give, if anybody wants to know.
        answer: What it gave.
        error: What it ended with instead; a model may not run on so few tokens.
        failure: What it means if the pass fails on all tokens, too, and what to do then.
    """

    run: Callable[[], Tensor]
    trace: Trace | None = None
    answer: Tensor | None = None
    error: Exception | None = None
    failure: tuple[str, str] | None = None

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

    def named(self, error: Exception) -> Exception:
        """Name what the code of a model has raised.

        Args:
            error: What was raised.

        Returns:
            The refusal; what is no fault of the model, such as a device's, is as it was.
        """
        return error if self.failure is None else named_failure(error, *self.failure)


def named_failure(error: Exception, what: str, way_out: str) -> Exception:
    """Name what the code of a model has raised in a pass.

    Args:
        error: What was raised.
        what: What that means.
        way_out: What to do then.

    Returns:
        The refusal; what is no fault of the model, such as a device's or for want of memory, is
        as it was.
    """
    if type(error) not in _OF_THE_MODEL or is_out_of_memory(error):
        return error
    sentence = " ".join(str(error).split()) or type(error).__name__
    named = UnsupportedModule(f"{what}: {sentence[:_LONGEST].rstrip('.')}; {way_out}")
    named.__cause__ = error
    return named
