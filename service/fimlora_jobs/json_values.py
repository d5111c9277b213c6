"""JSON whose values fit in memory: a megabyte of brackets is seventy of empty lists."""

import re

# What stands before each value but the first, or opens one.
_MARKS = (b",", b"[", b"{")
_TEXT = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)


class TooManyValues(ValueError):
    """There are more values than are read."""


def check_values(data: bytes, *, most: int) -> None:
    """Refuse JSON of so many values that its objects would take far more memory than its text.

    Args:
        data: The JSON.
        most: Values that are read.

    Raises:
        TooManyValues: There are more.
    """
    if _count(data) > most and _count(_TEXT.sub(b"", data)) > most:
        raise TooManyValues(f"it has more than {most:,} values")


def _count(data: bytes) -> int:
    return sum(map(data.count, _MARKS))
