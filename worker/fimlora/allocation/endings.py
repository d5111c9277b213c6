"""Names by their endings of so many parts, for one ending or a hundred thousand at once.

Nothing here imports torch.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fimlora.allocation.tied import stretches

Places = NDArray[np.intp]


class Endings:
    """Places of names by what they end with.

    Args:
        names: The names, each of which is there once.
        n_parts: How many parts, between dots, an ending has; a shorter name is its own.
    """

    def __init__(self, names: Sequence[str], n_parts: int) -> None:
        if n_parts == 1:
            endings = [name.rpartition(".")[2] for name in names]
        else:
            endings = [
                name if name.count(".") < n_parts else ".".join(name.rsplit(".", n_parts)[1:])
                for name in names
            ]
        self._number = dict(zip(endings, range(len(endings)), strict=True))
        if len(self._number) == len(endings):
            self._order, self._sizes = np.arange(len(endings)), np.ones(len(endings), np.intp)
        else:
            self._number = {ending: number for number, ending in enumerate(self._number)}
            numbers = map(self._number.__getitem__, endings)
            number_of = np.fromiter(numbers, dtype=np.intp, count=len(endings))
            self._order = np.argsort(number_of, kind="stable")
            self._sizes = np.bincount(number_of)
        self._starts = np.cumsum(self._sizes) - self._sizes

    def find(self, endings: Sequence[str]) -> tuple[Places, Places]:
        """Find the names that have some endings.

        Args:
            endings: The endings.

        Returns:
            Places of the names, ending by ending and rising in each; and how many names each
            ending has.
        """
        known = self._number
        found = np.array([known.get(ending, -1) for ending in endings], dtype=np.intp)
        is_known = found >= 0
        sizes = np.zeros(len(found), dtype=np.intp)
        sizes[is_known] = self._sizes[found[is_known]]
        starts = self._starts[found[is_known]]
        return self._order[stretches(starts, sizes[is_known])], sizes
