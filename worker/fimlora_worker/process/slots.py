"""Several workers in one machine: how many there are, and what device each of them has.

A GPU holds one worker at a time, which keeps its models there. On CPUs workers share the cores.
"""

import itertools
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

from fimlora_worker.process.hardware import PATIENCE_S
from fimlora_worker.process.threads import available_cores
from fimlora_worker.settings import Settings

MOST_WORKERS = 64
# Names of the GPUs that this machine has, as CUDA_VISIBLE_DEVICES takes them.
ListGpus = Callable[[], list[str]]


class DriverSilent(RuntimeError):
    """There is a driver of GPUs, and it does not say which there are."""


class SlotError(ValueError):
    """There are more workers than devices, or what was given is no slot."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One of several workers.

    Attributes:
        number: Which one, from 1.
        of: How many there are.
    """

    number: int
    of: int

    def __str__(self) -> str:
        """As `read_slot` reads it."""
        return f"{self.number}/{self.of}"


def read_slot(text: str) -> Slot:
    """Read ``2/4``, the second of four workers.

    Raises:
        SlotError: It is something else.
    """
    match = re.fullmatch(r"([1-9]\d?)/([1-9]\d?)", text)
    if match is None or not int(match[1]) <= int(match[2]) <= MOST_WORKERS:
        raise SlotError(f"slot {text!r}: give which worker of how many, such as 2/4")
    return Slot(int(match[1]), int(match[2]))


def list_gpus(*, nvidia_smi: str = "nvidia-smi") -> list[str]:
    """Ask the driver for the GPUs of this machine; none where there is no driver.

    Raises:
        DriverSilent: There is one, and it does not answer: no worker may take another's GPU then.
    """
    question = ("--query-gpu=index", "--format=csv,noheader")
    try:
        answer = subprocess.run(
            [nvidia_smi, *question],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=True,
        ).stdout
    except FileNotFoundError:
        return []
    except (OSError, subprocess.SubprocessError) as error:
        raise DriverSilent(
            f"{nvidia_smi} does not say which GPUs there are ({type(error).__name__})"
        ) from error
    return [word for word in answer.split() if word.isdecimal()]


def gpus_of(settings: Settings, *, ask: ListGpus = list_gpus) -> list[str]:
    """The GPUs that workers may have: those that are visible, or all.

    Args:
        settings: Of the workers.
        ask: Lists those of the machine.
    """
    if settings.device == "cpu":
        return []
    gpus = ask()
    if gpus and "cuda_visible_devices" in settings.model_fields_set:
        named = [name.strip() for name in settings.cuda_visible_devices.split(",")]
        # As CUDA reads it: nothing from -1 on is seen, and a GPU is one however often it is named.
        seen = itertools.takewhile(lambda name: name != "-1", filter(None, named))
        return [*dict.fromkeys(seen)]
    return gpus


def n_workers(wanted: str, settings: Settings, *, ask: ListGpus = list_gpus) -> int:
    """Read how many workers there are to be.

    Args:
        wanted: A number, or ``auto`` for one on every GPU, and one where there is none.
        settings: Of the workers.
        ask: Lists the GPUs of the machine.

    Raises:
        SlotError: It is neither, or there are fewer GPUs.
    """
    if wanted != "auto" and not re.fullmatch(r"[1-9]\d?", wanted):
        raise SlotError(f"--workers {wanted}: give a number from 1 to {MOST_WORKERS}, or auto")
    gpus = gpus_of(settings, ask=ask)
    if wanted == "auto":
        return max(1, len(gpus))
    number = int(wanted)
    if number > MOST_WORKERS:
        raise SlotError(f"--workers {wanted}: there may be {MOST_WORKERS} at most")
    _check_gpus(number, gpus)
    return number


def at_slot(
    settings: Settings,
    slot: Slot,
    *,
    ask: ListGpus = list_gpus,
    cores: Callable[[], int] = available_cores,
) -> Settings:
    """Give a worker its own device, or its share of the cores.

    Args:
        settings: Of all the workers.
        slot: Which one it is.
        ask: Lists the GPUs of the machine.
        cores: Counts the cores that all of them may use.

    Returns:
        Its settings.

    Raises:
        SlotError: There are fewer GPUs than workers.
    """
    gpus = gpus_of(settings, ask=ask)
    if gpus:
        _check_gpus(slot.of, gpus)
        return settings.model_copy(update={"cuda_visible_devices": gpus[slot.number - 1]})
    threads = settings.torch_threads or max(1, cores() // slot.of)
    return settings.model_copy(update={"torch_threads": threads})


def _check_gpus(number: int, gpus: list[str]) -> None:
    if gpus and number > len(gpus):
        raise SlotError(
            f"{number} workers, and {len(gpus)} GPU{'s' if len(gpus) > 1 else ''} "
            f"({', '.join(gpus)}): a GPU holds one worker at a time; give {len(gpus)} or auto, or "
            "FIMLORA_DEVICE=cpu"
        )
