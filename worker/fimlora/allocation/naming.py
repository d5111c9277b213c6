"""Names of modules as solvers ask for them: in the order of the alphabet, and by kind and depth.

Both are found once for all modules, however many choices of some of them are solved for. Nothing
here imports torch.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Places = NDArray[np.intp]

_INDEX = re.compile(r"\.(\d+)(?=\.|$)", re.MULTILINE)  # of a block or an expert
N_DRAWS = 5  # random numbers of a name
_WORD = 6  # bytes of one
_MOST_TOLD = 15  # digits of a whole number that a float tells from all others
_FEW = 8  # names are read one choice at a time where no choice has this part of all


class Naming:
    """Names, each of which is there once.

    Args:
        names: The names; what is asked for are places among them.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = np.empty(len(names), dtype=object)
        self._names[:] = names
        self._drawn: tuple[int, Floats] | None = None  # of the seed that was asked for last

    def __len__(self) -> int:
        return len(self._names)

    def at(self, places: Places) -> list[str]:
        """The names at some places."""
        found: list[str] = self._names[places].tolist()
        return found

    def by_alphabet(self, places: Places) -> Places:
        """Which of some places come first, by the order of the alphabet of their names."""
        if len(places) * _FEW < len(self):
            return np.argsort(self.turns_at(places))
        return self._in_order(self._alphabet, places)

    def turns_at(self, places: Places) -> Places:
        """Numbers of some places that are in the order of the alphabet of their names."""
        return self._turns[places]

    def by_kind(self, places: Places) -> tuple[Places, Places]:
        """Sort some places by kind, and those of one kind by the indices in their names.

        Returns:
            Which of the places come first; and how many there are of each kind, in the order of
            the kinds' names.
        """
        if len(places) * _FEW < len(self):
            some = _kinds_of(self.at(places))
            return some.order(), np.bincount(some.of, minlength=1)
        kinds, sizes = self.kinds, np.bincount(self.kinds.of[places], minlength=1)
        order = self._by_kind
        found = kinds.at(places).order() if order is None else self._in_order(order, places)
        return found, sizes[sizes > 0]

    @cached_property
    def kinds(self) -> "Kinds":
        """The kinds of all names, and the indices in them."""
        return _kinds_of(self._names.tolist())

    def drawn(self, seed: int) -> Floats:
        """Numbers in (0, 1], each from a seed and its name only (draws x names)."""
        known = self._drawn
        if known is None or known[0] != seed:
            known = self._drawn = seed, _drawn(self._names.tolist(), seed=seed)
        return known[1]

    @cached_property
    def _turns(self) -> Places:
        """Place of each name in the order of the alphabet."""
        turns = np.empty(len(self), dtype=np.intp)
        turns[self._alphabet] = np.arange(len(self))
        return turns

    @cached_property
    def _alphabet(self) -> Places:
        """All places in the order of the alphabet."""
        names = self._names.tolist()
        return np.array(sorted(range(len(names)), key=names.__getitem__), dtype=np.intp)

    @cached_property
    def _by_kind(self) -> Places | None:
        """All places by kind and indices; ``None`` where two names have the same of both."""
        order = self.kinds.order()
        keys = (key[order] for key in (self.kinds.of, *self.kinds.depth))
        are_unlike = np.any([np.diff(key) != 0 for key in keys], axis=0)
        return order if are_unlike.all() else None

    def _in_order(self, order: Places, places: Places) -> Places:
        """Which of some places come first, by an order of all of them."""
        number = np.full(len(self), -1, dtype=np.intp)
        number[places] = np.arange(len(places))
        found = number[order]
        return found[found >= 0]


@dataclass(frozen=True, slots=True)
class Kinds:
    """What names are but for the indices of blocks and experts in them, and these.

    Attributes:
        of: Number of the kind of each name, in the order of the kinds' names.
        depth: The first index of each name, the second, and so on: -1 where a name has no more.
        are_told: Whether no two names have the same of both: texts that are one number, such as
            ``1`` and ``01``, are told apart by neither.
    """

    of: Places
    depth: list[Floats]
    are_told: bool

    def at(self, places: Places) -> "Kinds":
        """The same of some names."""
        return Kinds(self.of[places], [d[places] for d in self.depth], self.are_told)

    def order(self) -> Places:
        """The names by kind, then by their indices; of equal ones the first comes first."""
        return np.lexsort([*self.depth[::-1], self.of])


def _drawn(names: Sequence[str], *, seed: int) -> Floats:
    sha256 = hashlib.sha256
    digests = [sha256(f"{seed}:{name}".encode()).digest() for name in names]
    digits = np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(len(names), -1)
    words = np.zeros((len(names), N_DRAWS, 8), dtype=np.uint8)
    words[..., -_WORD:] = digits[:, : _WORD * N_DRAWS].reshape(len(names), N_DRAWS, _WORD)
    values = words.view(">u8")[..., 0].astype(np.float64)  # whole numbers below 2^48
    return np.ascontiguousarray((values.T + 1) / 256.0**_WORD)


def _kinds_of(names: Sequence[str]) -> Kinds:
    """Take names apart, as one text: a hundred thousand small lists would take longer."""
    text = "\n".join(names)
    are_lines = text.count("\n") < max(1, len(names))
    if not are_lines:
        text = "\n".join(name.replace("\n", " ") for name in names)
    texts = _INDEX.split(text)  # and the indices between them
    kinds = ".\0".join(texts[::2]).split("\n")
    place = {kind: i for i, kind in enumerate(sorted(set(kinds)))}
    kind_of = np.fromiter(map(place.__getitem__, kinds), dtype=np.intp, count=len(kinds))
    counts = np.array([kind.count("\0") for kind in place], dtype=np.intp)[kind_of]
    indices = texts[1::2]
    numbers = np.array([*map(int, indices), -1], dtype=np.float64)
    are_told = are_lines and all(
        len(index) <= _MOST_TOLD and str(int(index)) == index for index in {*indices}
    )
    starts = np.cumsum(counts) - counts
    depth = [
        np.where(counts > i, numbers[np.minimum(starts + i, len(numbers) - 1)], -1)
        for i in range(int(counts.max(initial=0)))
    ]
    return Kinds(kind_of, depth, are_told)
