"""The sums of a run that is not finished, kept so that another run can go on from them.

A file is used only for the very run it comes from: the same model, batches, settings and
place to compute, all told by a fingerprint. Anything else is refused by name.
"""

import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fimlora.errors import InvalidOption, InvalidProgress
from fimlora.measuring.resume.fingerprints import describe_model, describe_place, digest_list
from fimlora.measuring.resume.tensor_file import read_tensors, write_tensors
from fimlora.model.checkpoint import Checkpoint
from fimlora.plan import TargetModule

PROGRESS_FORMAT = "fimlora.progress/1"
# How long a first save is taken to last, before one has been timed.
_BYTES_PER_S = 1e9


@dataclass(frozen=True)
class ProgressFile:
    """Where a run saves its sums as it goes, and where it goes on from if it was cut off.

    The file stays when the run has ended: remove it once the statistics are safe. One run at
    a time may write to it. Torch's random state goes on too; a loader that draws from it
    between batches while dropout is on does better with a generator of its own, as it would
    draw other batches while the first ones are skipped, which is refused.

    Attributes:
        path: The file; a run that finds one there goes on from it.
        model_digest: What the caller knows the model's weights by, if anything. The engine
            itself looks at a sample of them.
        max_share: Saving takes no more than about this share of the time. A batch that ends
            too early after the last save is not saved by itself, unless ``on_batch`` raises
            then; ``math.inf`` saves every one.
        on_resume: Called with (batches in the file, batches expected) when a run goes on
            from one.
        on_error: Called with what kept the file from being written, such as a full disk; the
            run goes on, and tries again later. ``None`` ends the run with it.
    """

    path: str | Path
    model_digest: str | None = None
    max_share: int | float = 0.01
    on_resume: Callable[[int, int], None] | None = None
    on_error: Callable[[OSError], None] | None = None

    @classmethod
    def of(cls, given: "str | Path | ProgressFile | None") -> "ProgressFile | None":
        """Read what a caller gave.

        Args:
            given: A path, a file, or neither.

        Returns:
            The file, if there is to be one.

        Raises:
            InvalidOption: Its folder does not exist, or its share is not above 0.
        """
        if given is None:
            return None
        file = given if isinstance(given, ProgressFile) else cls(Path(given))
        if not Path(file.path).absolute().parent.is_dir():
            raise InvalidOption(f"progress_file={str(file.path)!r}: there is no such folder")
        if not file.max_share > 0:
            raise InvalidOption(f"max_share={file.max_share}: it must be above 0")
        return file


@dataclass
class SavedSums:
    """Writes and reads the file of one run.

    Attributes:
        file: Where it is.
        fingerprint: What tells the run from others, by the name of each part; plain data.
        devices: Where the run computes.
        clock: Seconds of a monotonic clock.
    """

    file: ProgressFile
    fingerprint: Mapping[str, Any]
    devices: Sequence[torch.device]
    clock: Callable[[], float] = time.monotonic
    _saved_at: float = field(init=False)
    _cost_s: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        """Start the clock."""
        self._saved_at = self.clock()

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Read the file, if there is one.

        Returns:
            Tensors, each on the device it was on, and facts.

        Raises:
            InvalidProgress: It is damaged, or comes from another run.
        """
        path = Path(self.file.path)
        if not path.exists():
            return None
        try:
            tensors, facts = _read(path)
            given, devices = facts.pop("fingerprint"), facts.pop("devices")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidProgress(
                f"cannot go on from {path}: {error}; remove it to measure anew", path=path
            ) from error
        for name in [*self.fingerprint, *given]:
            if given.get(name) != self.fingerprint.get(name):
                raise self.refusal(name, given.get(name), self.fingerprint.get(name))
        return {
            name: tensor.to(devices.get(name, "cpu")) for name, tensor in tensors.items()
        }, facts

    def refusal(self, name: str, given: object, expected: object) -> InvalidProgress:
        """Say that the file comes from another run.

        Args:
            name: What differs.
            given: What the file says.
            expected: What it is in this run.

        Returns:
            The error, to be raised.
        """
        path = Path(self.file.path)
        return InvalidProgress(
            f"cannot go on from {path}: its {name} is {_short(given)}, this run's is "
            f"{_short(expected)}; remove the file, or name another one, to measure anew",
            path=path,
            field=name,
            given=given,
            expected=expected,
        )

    def is_due(self) -> bool:
        """Whether saving now keeps to its share of the time."""
        return self.clock() - self._saved_at >= self._cost_s / self.file.max_share

    def save_if_due(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Replace the file, if the time is right for tensors of that size.

        Args:
            tensors: Sums, on any device.
            facts: Plain data.
        """
        n_bytes = sum(t.numel() * t.itemsize for t in tensors.values())
        self._cost_s = max(self._cost_s, n_bytes / _BYTES_PER_S)
        if self.is_due():
            self.save(tensors, facts)

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Replace the file in one step.

        Args:
            tensors: Sums, on any device.
            facts: Plain data.

        Raises:
            OSError: It cannot be written, and the caller does not want to be told instead.
        """
        started = self.clock()
        devices = {n: str(t.device) for n, t in tensors.items() if t.device.type != "cpu"}
        known = {
            "format": PROGRESS_FORMAT,
            "fingerprint": dict(self.fingerprint),
            "devices": devices,
        }
        try:
            write_tensors(Path(self.file.path), tensors, {**known, **facts})
        except OSError as error:
            if self.file.on_error is None:
                raise
            self.file.on_error(error)
        self._saved_at = self.clock()
        self._cost_s = self._saved_at - started

    def save_quietly(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Save what the caller is about to end; it is to hear of its own reason.

        Args:
            tensors: Sums, on any device.
            facts: Plain data.
        """
        with suppress(OSError):
            self.save(tensors, facts)

    def expect(self, more: Mapping[str, Any]) -> None:
        """Add to the fingerprint.

        Args:
            more: Parts that are known only now.
        """
        self.fingerprint = {**self.fingerprint, **more}

    def tell_resumed(self, n_done: int, expected: int) -> None:
        """Tell the caller that the run goes on from the file.

        Args:
            n_done: Batches in it.
            expected: Batches the run will take.
        """
        if self.file.on_resume is not None:
            self.file.on_resume(n_done, expected)


def open_progress(
    given: str | Path | ProgressFile | None,
    model: nn.Module,
    modules: Sequence[TargetModule],
    settings: Mapping[str, Any],
    loss_fn: Callable[..., Any] | None = None,
    *,
    checkpoint: Checkpoint | None = None,
    devices: Sequence[torch.device] | None = None,
) -> SavedSums | None:
    """Open a run's file.

    Args:
        given: The file, if there is to be one.
        model: The model, or its skeleton.
        modules: Its target modules.
        settings: What else the sums depend on, by the name that users know it by.
        loss_fn: The caller's own loss.
        checkpoint: Where the weights of a skeleton are.
        devices: Where it computes, if that is not where the model is.

    Returns:
        The file with the run's fingerprint; ``None`` if there is to be none.
    """
    file = ProgressFile.of(given)
    if file is None:
        return None
    tensors = itertools.chain(model.parameters(), model.buffers())
    found = devices or sorted({t.device for t in tensors if not t.is_meta}, key=str)
    fingerprint = {
        "target_modules": digest_list(_shape_of(m) for m in modules),
        **settings,
        "loss_fn": name_of(loss_fn),
        "model_digest": file.model_digest,
        **describe_model(model, checkpoint),
        **describe_place(found),
    }
    return SavedSums(file, json.loads(json.dumps(fingerprint)), found)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, facts = read_tensors(path)
    if facts.pop("format") != PROGRESS_FORMAT:
        raise ValueError(f"not in format {PROGRESS_FORMAT!r}")
    return tensors, facts


def _shape_of(module: TargetModule) -> str:
    experts = "" if module.n_experts is None else f" {module.n_experts}"
    return f"{module.name} {module.d_in} {module.d_out}{experts}"


def name_of(function: Callable[..., Any] | None) -> str | None:
    """Name a function: code cannot be compared.

    Args:
        function: The function, if there is one.

    Returns:
        Its module and name.
    """
    if function is None:
        return None
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _short(value: object) -> str:
    """Digests are told apart by their first letters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:12]}...{text[-1]}"
