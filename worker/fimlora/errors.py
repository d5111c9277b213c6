"""Every error the engine raises on purpose.

Each carries a stable ``code`` (the wire's word for it) and refines the builtin a caller
would expect, so ``except ValueError`` keeps working for people who do not know fimlora.
"""

from pathlib import Path
from typing import ClassVar


class FimloraError(Exception):
    """Base of all engine errors; the message names what was given and what is allowed."""

    code: ClassVar[str] = "internal"


class InfeasibleBudget(FimloraError, ValueError):
    """No plan within the bounds meets the budget; the message has the feasible interval.

    Attributes:
        interval: The least and the most that the bounds permit, in ranks in total for a
            budget in ranks and in parameters for all others; ``None`` where no limit would
            help.
    """

    code = "budget_infeasible"

    def __init__(self, message: str, *, interval: tuple[int, int] | None = None) -> None:
        super().__init__(message)
        self.interval = interval


class UnequalControls(FimloraError, RuntimeError):
    """Patterns that were to be compared do not spend alike, which would be a fault of ours."""

    code = "internal"


class InvalidScore(FimloraError, ValueError):
    """A score is NaN, infinite or negative; the message names the module."""

    code = "numerical_failure"


class InvalidOption(FimloraError, ValueError):
    """An argument is outside what is allowed."""

    code = "validation_failed"


class UnknownTarget(FimloraError, LookupError):
    """A target module name matches nothing in the model; the message lists near names."""

    code = "validation_failed"


class UnsupportedModule(FimloraError, TypeError):
    """A target is of a kind the engine cannot measure or resize exactly."""

    code = "unsupported_architecture"


class MissingGradient(FimloraError, RuntimeError):
    """A target module ran forward but no gradient reached it, so it has no score."""

    code = "numerical_failure"


class NumericalFailure(FimloraError, ArithmeticError):
    """The loss or a gradient is NaN or infinite; the message names batch and module."""

    code = "numerical_failure"


class EmptyCalibration(FimloraError, ValueError):
    """The loader gave no batch, or no example carries a label."""

    code = "dataset_empty"


class NoLabelledExample(EmptyCalibration):
    """No example of the batches that were to be measured carries a label; others may."""


class InvalidAdapter(FimloraError, ValueError):
    """An adapter folder or rank map cannot be read as written by a sound tool."""

    code = "validation_failed"


class AdapterMismatch(FimloraError, RuntimeError):
    """Stock PEFT makes something else of an adapter than was planned; nothing is written."""

    code = "unsupported_architecture"


class NotAsPlanned(FimloraError, RuntimeError):
    """An adapter is not what was planned; the message has the first fault and the next step."""

    code = "validation_failed"


class MissingExtra(FimloraError, ImportError):
    """A name needs an optional dependency; the message names the extra to install."""

    code = "internal"


class InvalidStatistics(FimloraError, ValueError):
    """A statistics file cannot be read, or statistics of unlike runs were to be merged."""

    code = "validation_failed"


class InvalidCheckpoint(FimloraError, ValueError):
    """A model's weights cannot be read, or do not fit the model; the message names which."""

    code = "unsupported_architecture"


class OutOfMemory(FimloraError, MemoryError):
    """Not even one example at a time fits; the message names need, limit and a way out."""

    code = "out_of_memory_host"


class OutOfDeviceMemory(OutOfMemory):
    """As `OutOfMemory`, in the memory of a GPU."""

    code = "out_of_memory_gpu"


class InvalidProgress(FimloraError, ValueError):
    """A file of saved sums cannot be read, or comes from another run.

    Attributes:
        path: The file.
        field: What differs; ``None`` where the file cannot be read at all.
        given: What the file says of it.
        expected: What it is in this run.
        batches: First batch, and that behind the last one, of the shard that it is about.
    """

    code = "validation_failed"

    def __init__(
        self,
        message: str,
        *,
        path: Path | None = None,
        field: str | None = None,
        given: object = None,
        expected: object = None,
        batches: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(message)
        self.path, self.field = path, field
        self.given, self.expected = given, expected
        self.batches = batches
