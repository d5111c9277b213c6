"""A finding, what it is held against, and the file that a section writes them to as they come."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# What DESIGN asks for at least or at most, by section and way: field, limit, whether at most.
GOALS: dict[tuple[str, str], tuple[tuple[str, float, bool], ...]] = {
    ("resident", "sampled"): (
        ("over_bare", 1.03, True),
        ("peak_over_bare", 1.05, True),
        ("peft_over_it", 1.8, False),
    ),
    ("resident", "sketched"): (
        ("over_bare", 1.03, True),
        ("peak_over_bare", 1.05, True),
        ("peft_over_it", 1.8, False),
    ),
    ("resident", "exact"): (
        ("over_bare", 1.08, True),
        ("peak_over_bare", 1.05, True),
        ("peft_over_it", 1.4, False),
    ),
    ("streamed", "streamed"): (("over_resident", 1.5, True), ("above_two_blocks_gib", 1, True)),
}


@dataclass(frozen=True)
class Row:
    """What was found of one way, or why nothing was.

    Attributes:
        section: The part of the run.
        case: Model and batches.
        way: What ran.
        seconds: Of one batch, or of one run if streamed.
        facts: Numbers by name: ratios, shares, memory.
        note: What there is to say besides.
    """

    section: str
    case: str
    way: str
    seconds: float | None = None
    facts: dict[str, Any] | None = None
    note: str = ""

    def goals(self) -> list[tuple[str, float, bool, bool]]:
        """Field, limit, whether it is the highest allowed, and whether it is kept."""
        found = []
        for field, limit, is_most in GOALS.get((self.section, self.way), ()):
            value = (self.facts or {}).get(field)
            if value is not None:
                is_kept = value <= limit if is_most else value >= limit
                found.append((field, limit, is_most, is_kept))
        return found

    def to_json(self) -> dict[str, Any]:
        """As plain data, with its goals."""
        goals = [
            {"of": f, "limit": limit, "at": "most" if is_most else "least", "kept": kept}
            for f, limit, is_most, kept in self.goals()
        ]
        return asdict(self) | {"goals": goals}


class RowFile:
    """Rows on disk, each as soon as it is known: what a section found outlives it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, row: Row) -> None:
        """Keep a row."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row)) + "\n")

    def read(self) -> list[Row]:
        """All rows; the last one may have been cut off."""
        rows = []
        text = self._path.read_text(encoding="utf-8") if self._path.exists() else ""
        for line in text.splitlines():
            try:
                rows.append(Row(**json.loads(line)))
            except ValueError:
                continue
        return rows
