"""What an Accept header prefers (RFC 9110, section 12.5.1)."""

from collections.abc import Sequence


def quality_of(accept: str, names: Sequence[str]) -> float:
    """How much a client likes a type, from 0 (not at all) to 1.

    Args:
        accept: The header's value.
        names: What the type may be called, the most specific name first: it decides.
    """
    qualities = dict(map(_read_entry, accept.split(",")))
    return next((qualities[name] for name in names if name in qualities), 0.0)


def _read_entry(entry: str) -> tuple[str, float]:
    name, *parameters = (part.strip().lower() for part in entry.split(";"))
    weight = next((p[2:] for p in parameters if p.startswith("q=")), "1")
    try:
        return name, min(max(float(weight), 0.0), 1.0)
    except ValueError:
        return name, 1.0
