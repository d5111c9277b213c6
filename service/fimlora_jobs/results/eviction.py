"""Which results go when there are too many: pure arithmetic on what is known of each.

A result is never chosen while something needs it, nor before it has rested for a while: who
has just read or committed it has that long to put on record that it is needed.
"""

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """A result as far as eviction looks at it.

    Attributes:
        digest: Its address.
        size: Bytes of all its files.
        used_ms: When it was last committed or read.
    """

    digest: str
    size: int
    used_ms: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What is kept at most; ``None`` for no limit.

    Attributes:
        max_bytes: Of all results together.
        max_age_ms: Since a result was last used.
        rest_ms: How long every result is kept after its last use.
    """

    max_bytes: int | None = None
    max_age_ms: int | None = None
    rest_ms: int = 0


def choose_victims(
    entries: Iterable[Entry], *, needed: AbstractSet[str], limits: Limits, now_ms: int
) -> list[Entry]:
    """The results to delete, the least recently used first.

    Args:
        entries: All results.
        needed: Digests that are never chosen.
        limits: What is kept at most.
        now_ms: The time on the clock of ``used_ms``.
    """
    known = sorted(entries, key=lambda e: (e.used_ms, e.digest))
    excess = sum(e.size for e in known) - (limits.max_bytes or 0)
    victims = []
    for entry in known:
        rested = now_ms - entry.used_ms
        if entry.digest in needed or rested < limits.rest_ms:
            continue
        too_old = limits.max_age_ms is not None and rested > limits.max_age_ms
        if too_old or (limits.max_bytes is not None and excess > 0):
            victims.append(entry)
            excess -= entry.size
    return victims
