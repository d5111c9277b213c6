"""What somebody may have meant who gave a name that is none."""

import difflib
from collections.abc import Iterable

CLOSE = 0.6
MOST_COMPARED = 2_000


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """`; did you mean 'minilm'?`, or nothing where no name is near.

    Args:
        given: What was given.
        known: What there is.
    """
    near = nearest(given, known)
    return f"; did you mean {near!r}?" if near else ""


def nearest(given: str, known: Iterable[str]) -> str | None:
    """The known name that is most like a given one, whatever the case of its letters."""
    by_lower: dict[str, str] = {}
    for name in list(known)[:MOST_COMPARED]:
        by_lower.setdefault(name.lower(), name)
    found = difflib.get_close_matches(given[:256].lower(), by_lower, n=1, cutoff=CLOSE)
    return by_lower[found[0]] if found else None
