"""Stable orders of many numbers, faster than sorting stably.

A plain sort uses the machine's vectors and a stable one does not; numbers that are nearly all
different need stability in a few places only. Whole numbers of 16 bits are sorted by counting.
Nothing here imports torch.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Places = NDArray[np.intp]

FEW = 1 << 12  # below as many, the usual way takes no longer
_DIGIT = 16  # bits that are sorted by counting


def stable_order(values: Floats) -> Places:
    """Sort numbers; of equal ones the first comes first.

    Args:
        values: The numbers, none of which is NaN (N).

    Returns:
        What ``np.argsort(values, kind="stable")`` gives (N).
    """
    if len(values) < FEW:
        return np.argsort(values, kind="stable")
    order = np.argsort(values)
    in_order = values[order]
    is_equal = in_order[1:] == in_order[:-1]
    places = np.flatnonzero(np.append(is_equal, False) | np.append(False, is_equal))
    if len(places) > len(values) // 4:
        return np.argsort(values, kind="stable")
    tied = order[places]
    order[places] = tied[np.lexsort((tied, values[tied]))]
    return order


def stable_order_of_whole(values: Floats) -> Places:
    """Do what `stable_order` does with whole numbers, most of which are there several times.

    Args:
        values: The numbers (N).

    Returns:
        As there.
    """
    low, high = values.min(initial=0), values.max(initial=0)
    if len(values) < FEW or high - low >= 1 << 2 * _DIGIT:
        return np.argsort(values, kind="stable")
    found = (values - low).astype(np.uint32)
    order = np.argsort(found.astype(np.uint16), kind="stable")  # by the lower half
    upper = (found >> np.uint32(_DIGIT)).astype(np.uint16)
    return order[np.argsort(upper[order], kind="stable")]
