"""Groups of modules that are to have one rank, as places: a tuple of names each would take longer.

Nothing here imports torch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Tied:
    """Groups, none of which is empty.

    Attributes:
        places: Places of the modules, group by group.
        sizes: How many modules each group has.
    """

    places: Places
    sizes: Places

    @classmethod
    def of(cls, groups: Iterable[Sequence[int]]) -> "Tied":
        """Put groups of places together, and leave out the empty ones.

        Returns:
            The others.
        """
        some = [group for group in groups if len(group)]
        places = np.array([place for group in some for place in group], dtype=np.intp)
        return cls(places, np.array([*map(len, some)], dtype=np.intp))

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def starts(self) -> Places:
        """Where each group begins among the places."""
        return np.cumsum(self.sizes) - self.sizes

    @property
    def group_of(self) -> Places:
        """Number of the group of each place."""
        return np.repeat(np.arange(len(self)), self.sizes)

    def take(self, numbers: Places) -> "Tied":
        """Some of the groups, in the order of their numbers."""
        sizes = self.sizes[numbers]
        return Tied(self.places[stretches(self.starts[numbers], sizes)], sizes)

    def named(self, names: Sequence[str]) -> list[tuple[str, ...]]:
        """The groups by the names of all modules."""
        found = [names[place] for place in self.places.tolist()]
        pairs = zip(self.starts.tolist(), self.sizes.tolist(), strict=True)
        return [tuple(found[start : start + size]) for start, size in pairs]


def stretches(starts: Places, sizes: Places) -> Places:
    """List whole numbers one stretch after the other.

    Args:
        starts: The first of each stretch.
        sizes: How many there are in each.

    Returns:
        All of them.
    """
    before = np.cumsum(sizes) - sizes
    return np.asarray(np.arange(int(sizes.sum())) + np.repeat(starts - before, sizes))
