"""Names of modules as entries of a request mean them, looked up by their dotted endings.

A request may have ten thousand entries, and a checkpoint as many weights: holding each entry
against each name would take a thread for most of a minute.
"""

from collections.abc import Iterable


class Endings:
    """Names that entries are looked up in.

    An entry means a name that it is, that ends in it after a dot, or that it ends in after a dot:
    it may have the prefix of a base model that the checkpoint lacks.

    Args:
        names: The names, each of which is there once.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._place = {name: i for i, name in enumerate(names)}
        self._most_parts = max((name.count(".") + 1 for name in self._place), default=0)
        self._by_end: dict[int, dict[str, list[str]]] = {}  # by how many parts the ending has

    def __contains__(self, entry: str) -> bool:
        """Whether an entry means any."""
        return bool(self.meant(entry))

    def meant(self, entry: str) -> list[str]:
        """What an entry means, in the order of the names."""
        shorter = self._that_it_ends_in(entry)
        n_parts = entry.count(".") + 1
        longer = self._ends(n_parts).get(entry, []) if n_parts <= self._most_parts else []
        if not shorter:
            return longer
        return sorted([*shorter, *longer], key=self._place.__getitem__)

    def meant_by(self, entries: Iterable[str]) -> set[str]:
        """What any of some entries means."""
        return {name for entry in dict.fromkeys(entries) for name in self.meant(entry)}

    def _that_it_ends_in(self, entry: str) -> list[str]:
        """Names with fewer parts than the entry; no more parts of it are looked at than names have."""
        parts = entry.rsplit(".", self._most_parts + 1)[1:][-self._most_parts :]
        ends = (".".join(parts[start:]) for start in range(len(parts)))
        return [end for end in ends if end in self._place]

    def _ends(self, n_parts: int) -> dict[str, list[str]]:
        """Names by their endings of so many parts."""
        if n_parts not in self._by_end:
            found = self._by_end[n_parts] = {}
            for name in self._place:
                end = ".".join(name.rsplit(".", n_parts)[-n_parts:])
                found.setdefault(end, []).append(name)
        return self._by_end[n_parts]
