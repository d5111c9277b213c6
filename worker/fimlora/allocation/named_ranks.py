"""Ranks of several patterns by module name, each of which is named when it is first asked for.

A plan has up to eleven controls, and who asks for one of a hundred thousand modules rarely asks
for all: as dictionaries they would take a third of the time of planning. Nothing here imports torch.
"""

from collections.abc import Iterator, Mapping, Sequence

from fimlora.allocation.units import Ranks


class NamedRanks(Mapping[str, Mapping[str, int]]):
    """Rank per module name, by the name of the pattern.

    Args:
        names: Names of the modules.
        tables: Ranks in the order of the names, by the name of the pattern.
    """

    def __init__(self, names: Sequence[str], tables: Mapping[str, Ranks]) -> None:
        self._names = names
        self._tables = dict(tables)
        self._named: dict[str, dict[str, int]] = {}

    def __getitem__(self, pattern: str) -> Mapping[str, int]:
        if pattern not in self._named:
            ranks = self._tables[pattern].tolist()
            self._named[pattern] = dict(zip(self._names, ranks, strict=True))
        return self._named[pattern]

    def table(self, pattern: str) -> Ranks:
        """Ranks of a pattern in the order of the modules; not to be written to."""
        return self._tables[pattern]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tables)

    def __len__(self) -> int:
        return len(self._tables)

    def __repr__(self) -> str:
        return repr(dict(self))
