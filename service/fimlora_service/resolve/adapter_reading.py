"""Adapters as the engine reads them, within the limits of a service that others send to."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fimlora.adapter.trained import adalora
from fimlora.adapter.trained.read import Limits, TrainedAdapter, read_fields, read_trained
from fimlora.errors import FimloraError, InfeasibleBudget, InvalidAdapter, MissingExtra
from fimlora_service.errors import AdapterInvalid, BudgetInfeasible, ValidationFailed
from fimlora_service.resolve.adapter_limits import MAX_CONFIG_BYTES

# A matrix is computed with in float64, a few copies of it at a time, and one adapter at a time.
LIMITS = Limits(
    config_bytes=MAX_CONFIG_BYTES,
    header_bytes=8 << 20,
    tensors=20_000,
    name_chars=512,
    elements=1 << 26,
    rank=1_024,
    work=200 * 10**9,  # all linear maps of an 8B model at rank 256: about a minute
)


@contextmanager
def engine_errors() -> Iterator[None]:
    """What the engine refuses, as a problem.

    Raises:
        AdapterInvalid: The adapter is none that can be used.
        BudgetInfeasible: No ranks meet the budget.
        ValidationFailed: An option does not fit the adapter.
    """
    try:
        yield
    except (InvalidAdapter, MissingExtra) as error:
        raise AdapterInvalid(str(error)) from error
    except InfeasibleBudget as error:
        raise BudgetInfeasible(str(error)) from error
    except PermissionError as error:
        raise AdapterInvalid("the adapter may not be read by the service's user") from error
    except FimloraError as error:
        raise ValidationFailed(str(error)) from error


def read_head(folder: Path) -> TrainedAdapter:
    """Read an adapter's config and the head of its file.

    Raises:
        AdapterInvalid: It is none that can be used.
    """
    with engine_errors():
        return read_trained(folder, limits=LIMITS)


def read_whole(folder: Path) -> TrainedAdapter:
    """Read an adapter and see that all its numbers are some.

    Raises:
        AdapterInvalid: It is none that can be used.
    """
    with engine_errors():
        trained = read_trained(folder, limits=LIMITS)
        for name in trained.modules:
            trained.matrices(name)
        return trained


def is_adalora(folder: Path) -> bool:
    """Whether an adapter is AdaLoRA, of which plain LoRA can be made.

    Raises:
        AdapterInvalid: Its config cannot be read.
    """
    with engine_errors():
        return adalora.is_adalora(read_fields(folder, limits=LIMITS))


def read_adalora(folder: Path, work: Path) -> TrainedAdapter:
    """Read AdaLoRA as the plain LoRA that it becomes.

    Args:
        folder: The adapter's folder.
        work: An empty folder for the plain LoRA.

    Raises:
        AdapterInvalid: It is none that can be used.
    """
    with engine_errors():
        adalora.write_plain(folder, work, read_fields(folder, limits=LIMITS), limits=LIMITS)
        return read_trained(work, limits=LIMITS)
