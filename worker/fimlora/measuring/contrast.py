"""Measure two datasets under one model, one head and one set of options: to change, and to keep."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fimlora.errors import EmptyCalibration, InvalidOption
from fimlora.measuring.examples.batches import as_batch
from fimlora.measuring.resume.progress_file import ProgressFile
from fimlora.measuring.settings import OnBatch, Settings
from fimlora.statistics import Statistics
from fimlora.statistics.options import Record

AnyBatch = Mapping[str, Any]
# Measures some batches by some settings, by whatever executor.
MeasureRun = Callable[[Iterable[AnyBatch], Settings], Statistics]


def measure_both(
    measure: MeasureRun,
    batches: Iterable[AnyBatch],
    retain: Iterable[AnyBatch],
    settings: Settings,
) -> Statistics:
    """Measure what is to be learned, and then what is to be kept.

    Args:
        measure: Measures one of them; a head that was drawn anew is the same in both.
        batches: The rows at hand.
        retain: The rows whose function is to be kept; as many batches at most.
        settings: What to measure of the first; of the second it is what a contrast needs.

    Returns:
        Statistics of the first with those of the second as their ``retain``.

    Raises:
        EmptyCalibration: One of them gave no batch.
        InvalidOption: Their batches hold unlike arguments, which the message names.
    """  # noqa: DOC502 - the helpers raise
    batches, retain = (
        _Looked(batches, "loader"),
        _Looked(retain, "loader of the rows to retain"),
    )
    if batches.arguments != retain.arguments:
        raise InvalidOption(
            f"the rows to retain are of another kind: their batches hold {retain.arguments}, those "
            f"at hand {batches.arguments}; make both alike"
        )
    n_first, n_second = (_expected(each, settings.n_batches) for each in (batches, retain))
    first = replace(settings, on_batch=_shifted(settings.on_batch, 0, n_second))
    found = measure(batches, first)
    second = settings_to_retain(settings, estimator=found.estimator.value)
    second = replace(second, on_batch=_shifted(settings.on_batch, n_first, 0))
    return found.with_retain(measure(retain, second))


def settings_to_retain(settings: Settings, *, estimator: str) -> Settings:
    """Say how rows to retain are measured: alike, and no more of them than a contrast needs.

    Args:
        settings: How the rows at hand are.
        estimator: What they were measured by, where that was chosen by itself.

    Returns:
        The settings; sums that are saved go to a file beside the first one.
    """
    file = ProgressFile.of(settings.progress_file)
    if file is not None:
        path = Path(file.path)
        file = replace(file, path=path.with_name(f"{path.name}.retain"))
    # What scores are taken of at a trained adapter; else the energies that every run has.
    record = settings.parsed_record & {Record.ADAPTER_GRADIENTS}
    return replace(
        settings,
        estimator=estimator,
        record=record,
        null=False,
        first_example=0,
        progress_file=file,
    )


class _Looked:
    """Batches of which the first one was looked at; it is not drawn a second time."""

    def __init__(self, batches: Iterable[AnyBatch], what: str) -> None:
        self._batches, self._rest = batches, iter(batches)
        first = next(self._rest, None)
        if first is None:
            raise EmptyCalibration(f"the {what} gave no batch")
        self._first = as_batch(first)

    @property
    def arguments(self) -> str:
        """The arguments of a batch, with what their values are."""
        return ", ".join(
            f"{name} ({value.dim()}-D, {_kind(value)})" if isinstance(value, Tensor) else name
            for name, value in sorted(self._first.items())
        )

    def __len__(self) -> int:
        """Number of batches, where the loader knows it."""
        return len(self._batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[AnyBatch]:
        """All batches, once."""
        yield self._first
        yield from self._rest


def _kind(values: Tensor) -> str:
    return "numbers" if values.is_floating_point() else "whole numbers"


def _expected(batches: Iterable[AnyBatch], n_batches: int) -> int:
    """How many batches a loader will give, as far as it knows."""
    try:
        return min(n_batches, len(batches))  # type: ignore[arg-type]
    except TypeError:
        return n_batches


def _shifted(on_batch: OnBatch | None, before: int, after: int) -> OnBatch | None:
    """Tell of batches as of some among those of both."""
    if on_batch is None:
        return None
    return lambda done, expected: on_batch(before + done, before + expected + after)
