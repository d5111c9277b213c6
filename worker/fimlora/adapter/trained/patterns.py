"""Which key of a pattern holds for a module, as PEFT finds it.

A key is a regular expression that must match the end of a module's name, from its beginning or
behind a dot; the first key that does is the one. Most keys are plain names, in which a dot
stands for any character. Those are looked up, as there may be as many keys as modules; only a
true expression is run, against the clock, and needs the package ``regex``.
"""

import re
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from fimlora.adapter.config import dotted_ends
from fimlora.errors import InvalidAdapter, InvalidOption, MissingExtra

SECONDS = 5.0
_PLAIN = re.compile(r"\^?(?:[\w-]|\\\.|\.)+")
_MAX_FORMS = 256  # of plain keys, by length and places of dots: each is tried on every name
_ANY = "\n"  # no name has it


def first_keys(
    option: str, keys: Sequence[str], names: Sequence[str], *, seconds: float = SECONDS
) -> dict[str, str]:
    """Find the first key that holds for each module.

    Args:
        option: Where the keys stand, for errors.
        keys: The keys in their order.
        names: Full names of modules in the base model.
        seconds: How long true expressions may take together.

    Returns:
        The key by name; names that none holds for are left out.

    Raises:
        InvalidAdapter: A key is no regular expression, or takes too long.
    """  # noqa: DOC502 - the helpers raise
    plain = {i: key for i, key in enumerate(keys) if _PLAIN.fullmatch(key)}
    found = _plain_matches(plain, names)
    end = time.monotonic() + seconds
    for i, key in enumerate(keys):
        if i not in plain:
            left = max(end - time.monotonic(), 1e-3)
            for name in full_matches(option, rf"(.*\.)?({key})", names, seconds=left):
                found[name] = min(found.get(name, i), i)
    return {name: keys[i] for name, i in found.items()}


def full_matches(
    option: str, expression: str, names: Iterable[str], *, seconds: float = SECONDS
) -> set[str]:
    """Find the names that an expression matches as a whole.

    Args:
        option: Where it stands, for errors.
        expression: The expression.
        names: The names.
        seconds: How long all of them may take together.

    Returns:
        Those that match.

    Raises:
        InvalidAdapter: It is no regular expression, or takes too long.
        MissingExtra: The package that stops expressions is not installed.
    """
    try:
        from fimlora.model.expressions import matching
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"{option} has a regular expression, and to run one needs {error.name!r}, which is "
            "not installed: pip install regex"
        ) from error
    try:
        return matching(option, expression, names, seconds=seconds)
    except InvalidOption as error:
        raise InvalidAdapter(str(error)) from error


def _plain_matches(keys: Mapping[int, str], names: Iterable[str]) -> dict[str, int]:
    """The lowest number of a plain key that holds, by name."""
    # By length, then by where a key's dots are: an end of a name with these places blotted out
    # is the key with them blotted out, or it is not.
    known: dict[int, dict[tuple[int, ...], dict[tuple[str, bool], int]]]
    known = defaultdict(lambda: defaultdict(dict))
    for i, key in keys.items():
        text = key.removeprefix("^").replace(r"\.", _ANY)
        dots = tuple(place for place, letter in enumerate(text) if letter == ".")
        blotted = text.replace(".", "").replace(_ANY, ".")
        known[len(text)][dots].setdefault((blotted, key.startswith("^")), i)
    if sum(map(len, known.values())) > _MAX_FORMS:
        raise InvalidAdapter(f"the keys of a pattern have over {_MAX_FORMS} different forms")
    found = {}
    for name in names:
        hits = [
            places[blotted, is_whole]
            for end in dotted_ends(name)
            for dots, places in known.get(len(end), {}).items()
            for blotted in [_without(end, dots)]
            for is_whole in (False, True)
            if (blotted, is_whole) in places and (len(end) == len(name) or not is_whole)
        ]
        if hits:
            found[name] = min(hits)
    return found


def _without(text: str, places: Iterable[int]) -> str:
    letters = list(text)
    for place in places:
        letters[place] = ""
    return "".join(letters)
