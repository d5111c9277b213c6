"""Singular values of many modules as one table, sorted and checked at once.

A model has up to a hundred thousand modules: an array each would take longer than the solution.
Nothing here imports torch.
"""

from collections.abc import Iterator
from functools import cached_property
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fimlora.allocation.units import Floats
from fimlora.errors import InvalidScore
from fimlora.scores import Spectra


class Falling(dict[str, Any]):
    """Spectra that are counted, put into tables and sorted once, however often they are asked for.

    Args:
        spectra: Singular values per module name, in any order.
    """

    @classmethod
    def of(cls, spectra: Spectra) -> "Falling":
        """Give what is one already as it is."""
        return spectra if isinstance(spectra, Falling) else cls(spectra)

    @cached_property
    def counts(self) -> NDArray[np.intp]:
        """How many values each module has."""
        if self._are_plain:
            return np.array([*map(len, self.values())], dtype=np.intp)
        return np.fromiter(map(np.size, self.values()), dtype=np.intp, count=len(self))

    @cached_property
    def _are_plain(self) -> bool:
        """Whether all are flat arrays of one type: they are put together at once."""
        return (
            {*map(type, self.values())} == {np.ndarray}
            and {*map(attrgetter("ndim"), self.values())} == {1}
            and {*map(attrgetter("dtype"), self.values())} == {np.dtype(np.float64)}
        )

    @cached_property
    def by_count(self) -> list[tuple[NDArray[np.intp], Floats]]:
        """Rows of the modules with as many values, and these, in falling order."""
        return [(rows, _in_falling_order(table)) for rows, table in self._tables()]

    def at(self, places: NDArray[np.intp]) -> "Falling":
        """Those of the modules at some places, in the order of these."""
        items = list(self.items())
        return Falling(items[place] for place in places.tolist())

    def check(self) -> None:
        """See that they are lists of numbers that may be singular values.

        Raises:
            InvalidScore: A value is no number, NaN, infinite or negative; the message names the
                module.
        """  # noqa: DOC502 - a helper raises
        try:
            are_sound = all(_are_sound(table) for _, table in self.by_count)
        except (TypeError, ValueError):
            are_sound = False
        if not are_sound:
            for name, values in self.items():
                _check_one(name, values)

    def table(self, width: int) -> Floats:
        """The largest values of each module, in falling order, and zeros where it has no more.

        Args:
            width: How many of each.

        Returns:
            The values (modules x width); not to be written to.
        """
        if len(self.by_count) == 1 and self.by_count[0][1].shape[1] >= width:
            return self.by_count[0][1][:, :width]
        found = np.zeros((len(self), width))
        for rows, table in self.by_count:
            n = min(width, table.shape[1])
            found[rows, :n] = table[:, :n]
        return found

    def _tables(self) -> Iterator[tuple[NDArray[np.intp], Floats]]:
        values = list(self.values())
        for size in np.unique(self.counts).tolist():
            rows = np.flatnonzero(self.counts == size)
            some = (
                values if len(rows) == len(values) else [values[row] for row in rows.tolist()]
            )
            table = (
                np.concatenate(some) if self._are_plain else np.array(some, dtype=np.float64)
            )
            yield rows, table.reshape(len(rows), size)


def _in_falling_order(table: Floats) -> Floats:
    """Sort each row, unless all are in order, as singular values mostly come."""
    if np.all(table[:, 1:] <= table[:, :-1]):
        return table
    return np.sort(table, axis=1)[:, ::-1]


def _are_sound(values: Floats) -> bool:
    # Both are NaN where a value is.
    return bool(values.min(initial=0.0) >= 0 and values.max(initial=0.0) < np.inf)


def _check_one(name: str, values: object) -> None:
    try:
        found = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InvalidScore(f"the spectrum of {name!r} is no list of numbers") from None
    if not _are_sound(found):
        raise InvalidScore(
            f"the spectrum of {name!r} has a value that is NaN, infinite or negative"
        )
