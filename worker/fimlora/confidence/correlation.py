"""Whether two rows of values have one order: Spearman's correlation."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_DIGITS = 6


def spearman(a: Sequence[int | float], b: Sequence[int | float]) -> float | None:
    """Correlate two orders; equal values share their places.

    Args:
        a: Values.
        b: As many others.

    Returns:
        From -1 to 1; ``None`` where one of them is constant and orders nothing.
    """
    x, y = (_centred_places(np.asarray(values, dtype=np.float64)) for values in (a, b))
    spread = math.sqrt(float(x @ x) * float(y @ y))
    return round(float(x @ y) / spread, _DIGITS) if spread else None


def _centred_places(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Place of each value in rising order, less their mean; equal values share theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    places = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return np.asarray(places - (len(places) + 1) / 2)
