"""Regular expressions over names of modules, as PEFT reads them, run against the clock.

Whether one is sound is up to `re`, which PEFT uses. It is run by `regex`, which reads the same
language and can be stopped: an expression that backtracks without end would hold a worker, and
no signal interrupts `re`.
"""

import re
import time
import warnings
from collections.abc import Iterable

import regex

from fimlora.errors import InvalidOption

SECONDS = 5.0


def matching(
    option: str, expression: str, names: Iterable[str], *, seconds: float = SECONDS
) -> set[str]:
    """Find the names that an expression matches as a whole.

    Args:
        option: What the expression was given as, for errors.
        expression: The expression.
        names: The names.
        seconds: How long all of them may take together.

    Returns:
        Those that match.

    Raises:
        InvalidOption: It is no regular expression, or takes too long.
    """
    given = f"{option}={expression!r}"
    try:
        with warnings.catch_warnings(action="ignore"):
            re.compile(expression)
            compiled = regex.compile(expression)
    except (re.error, regex.error, OverflowError, RecursionError) as error:
        raise InvalidOption(f"{given} is no regular expression: {error}") from error
    end = time.monotonic() + seconds
    try:
        return {
            name
            for name in names
            if compiled.fullmatch(name, timeout=max(1e-3, end - time.monotonic()))
        }
    except TimeoutError as error:
        raise InvalidOption(
            f"{given} takes more than {seconds:g} s: it backtracks without end; let no repeat "
            "stand inside another, or give names"
        ) from error
