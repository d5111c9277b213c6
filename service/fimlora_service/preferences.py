"""The ``Prefer`` header (RFC 7240), of which one preference is known: ``wait``."""

from collections.abc import Sequence

LONGEST_WAIT_S = 60


def wait_preference(headers: Sequence[str]) -> int | None:
    """Seconds a client wants to wait, at most a minute; what is not understood is ignored.

    Args:
        headers: The values of all ``Prefer`` headers of a request.
    """
    for preference in ",".join(headers).split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        seconds = value.strip().strip('"')
        if name.strip().lower() == "wait":  # of several the first one counts
            is_number = seconds.isascii() and seconds.isdecimal() and len(seconds) < 10
            return min(int(seconds), LONGEST_WAIT_S) if is_number else None
    return None
