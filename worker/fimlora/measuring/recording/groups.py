"""What was recorded, beside it what was recorded of the null and of the halves.

They all travel in one mapping, through saved progress and from block to block; the names of
their groups tell them apart.
"""

import numpy as np
from numpy.typing import NDArray

from fimlora.statistics.groups import GROUPS
from fimlora.statistics.statistics import Groups

# One number per example; all else is summed over them.
_BY_EXAMPLE = "example_energies"
# Sums of squares, which rounding must not leave below zero when a part is taken off.
_SQUARES = frozenset(
    {"row_energies", "squared_gradients", "input_squares", "batch_energies"}
    | {name for name, group in GROUPS.items() if group.is_square}
)


def prefixed(prefix: str, groups: Groups) -> Groups:
    """Name groups as those of a part.

    Args:
        prefix: The part's.
        groups: What was recorded of it.

    Returns:
        The same under longer names.
    """
    return {f"{prefix}{group}": by_module for group, by_module in groups.items()}


def copied(groups: Groups) -> Groups:
    """Give arrays memory of their own.

    Args:
        groups: What was recorded.

    Returns:
        The same, whatever becomes of the sums.
    """
    return {
        group: {name: values.copy() for name, values in by_module.items()}
        for group, by_module in groups.items()
    }


def part_of(groups: Groups, is_part: NDArray[np.bool_]) -> Groups:
    """Turn what was recorded of some examples into theirs alone.

    Args:
        groups: Sums over them, but the numbers of all examples.
        is_part: Which examples they are.

    Returns:
        Their sums and numbers.
    """
    found = {
        group: {name: np.maximum(values, 0) for name, values in by_module.items()}
        if group in _SQUARES
        else by_module
        for group, by_module in groups.items()
    }
    numbers = groups[_BY_EXAMPLE]
    return found | {_BY_EXAMPLE: {name: n[is_part] for name, n in numbers.items()}}
