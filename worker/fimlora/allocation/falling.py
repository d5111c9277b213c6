"""Singular values of many modules as one table, sorted and checked at once.

A model has up to a hundred thousand modules: an array each would take longer than the solution.
Nothing here imports torch.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fimlora.allocation.units import Floats
from fimlora.errors import InvalidScore
from fimlora.scores import Spectra


def check_values(spectra: Spectra) -> NDArray[np.intp]:
    """See that spectra are lists of numbers that may be singular values.

    Args:
        spectra: Singular values per module name, in any order.

    Returns:
        How many each module has.

    Raises:
        InvalidScore: A value is no number, NaN, infinite or negative; the message names the
            module.
    """  # noqa: DOC502 - a helper raises
    sizes = np.zeros(len(spectra), dtype=np.intp)
    try:
        tables = list(_by_size(spectra, sizes))
    except (TypeError, ValueError):
        tables = None
    if tables is None or not all(_are_sound(table) for _, table in tables):
        for name, values in spectra.items():
            _check_one(name, values)
    return sizes


def falling_table(spectra: Spectra, width: int) -> Floats:
    """The largest values of each module, in falling order, and zeros where it has no more.

    Args:
        spectra: Singular values per module name, in any order.
        width: How many of each.

    Returns:
        The values (modules x width).
    """
    found = np.zeros((len(spectra), width))
    for rows, table in _by_size(spectra, np.zeros(len(spectra), dtype=np.intp)):
        n = min(width, table.shape[1])
        found[rows, :n] = np.sort(table, axis=1)[:, ::-1][:, :n]
    return found


def _by_size(
    spectra: Spectra, sizes: NDArray[np.intp]
) -> Iterator[tuple[NDArray[np.intp], Floats]]:
    """Rows of the modules with as many values, and these; fills in the sizes."""
    values = list(spectra.values())
    sizes[:] = np.fromiter(map(np.size, values), dtype=np.intp, count=len(values))
    for size in np.unique(sizes).tolist():
        rows = np.flatnonzero(sizes == size)
        table = np.array([values[row] for row in rows.tolist()], dtype=np.float64)
        yield rows, table.reshape(len(rows), size)


def _are_sound(values: Floats) -> bool:
    return bool(np.all((values >= 0) & (values < np.inf)))


def _check_one(name: str, values: object) -> None:
    try:
        found = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InvalidScore(f"the spectrum of {name!r} is no list of numbers") from None
    if not _are_sound(found):
        raise InvalidScore(
            f"the spectrum of {name!r} has a value that is NaN, infinite or negative"
        )
