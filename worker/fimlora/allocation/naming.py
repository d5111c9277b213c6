"""Names of modules as solvers ask for them: in the order of the alphabet, and by kind and depth.

Both are found once for all modules, however many choices of some of them are solved for. Nothing
here imports torch.
"""

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Places = NDArray[np.intp]

_INDEX = re.compile(r"\.(\d+)(?=\.|$)", re.MULTILINE)  # of a block or an expert
N_DRAWS = 5  # random numbers of a name
_WORD = 6  # bytes of one
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
        return np.argsort(self.turns_at(places))

    def turns_at(self, places: Places) -> Places:
        """Numbers of some places that are in the order of the alphabet of their names."""
        return self._turns[places]

    def kinds_at(self, places: Places) -> tuple[Places, list[Floats]]:
        """Find the kinds of some names, and the indices in them.

        A kind is a name but for the indices of blocks and experts in it.

        Returns:
            Number of the kind of each, in the order of the kinds' names; and the first index of
            each name, the second, and so on: -1 where a name has no more.
        """
        if len(places) * _FEW < len(self):
            return _kinds_of(self.at(places))
        kind_of, depth = self._kinds
        some = kind_of[places]
        is_there = np.bincount(some, minlength=1) > 0
        return (np.cumsum(is_there) - 1)[some], [indices[places] for indices in depth]

    def drawn(self, seed: int) -> Floats:
        """Numbers in (0, 1], each from a seed and its name only (draws x names)."""
        known = self._drawn
        if known is None or known[0] != seed:
            known = self._drawn = seed, _drawn(self._names.tolist(), seed=seed)
        return known[1]

    @cached_property
    def _turns(self) -> Places:
        """Place of each name in the order of the alphabet."""
        names = self._names.tolist()
        turns = np.empty(len(names), dtype=np.intp)
        turns[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
        return turns

    @cached_property
    def _kinds(self) -> tuple[Places, list[Floats]]:
        return _kinds_of(self._names.tolist())


def _drawn(names: Sequence[str], *, seed: int) -> Floats:
    sha256 = hashlib.sha256
    digests = [sha256(f"{seed}:{name}".encode()).digest() for name in names]
    digits = np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(len(names), -1)
    words = np.zeros((len(names), N_DRAWS, 8), dtype=np.uint8)
    words[..., -_WORD:] = digits[:, : _WORD * N_DRAWS].reshape(len(names), N_DRAWS, _WORD)
    values = words.view(">u8")[..., 0].astype(np.float64)  # whole numbers below 2^48
    return np.ascontiguousarray((values.T + 1) / 256.0**_WORD)


def _kinds_of(names: Sequence[str]) -> tuple[Places, list[Floats]]:
    """Do what `Naming.kinds_at` does, for all names.

    They are taken apart as one text: a hundred thousand small lists would take longer.

    Returns:
        As there.
    """
    text = "\n".join(names)
    if text.count("\n") >= max(1, len(names)):
        text = "\n".join(name.replace("\n", " ") for name in names)
    texts = _INDEX.split(text)  # and the indices between them
    kinds = ".\0".join(texts[::2]).split("\n")
    place = {kind: i for i, kind in enumerate(sorted(set(kinds)))}
    kind_of = np.fromiter(map(place.__getitem__, kinds), dtype=np.intp, count=len(kinds))
    counts = np.array([kind.count("\0") for kind in place], dtype=np.intp)[kind_of]
    numbers = np.array([*map(int, texts[1::2]), -1], dtype=np.float64)
    starts = np.cumsum(counts) - counts
    depth = [
        np.where(counts > i, numbers[np.minimum(starts + i, len(numbers) - 1)], -1)
        for i in range(int(counts.max(initial=0)))
    ]
    return kind_of, depth
