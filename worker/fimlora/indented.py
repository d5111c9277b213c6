"""JSON with two spaces of indent, to the byte as the standard library writes it, but faster.

With an indent the library goes through every value in Python, without one in C. A value that
is *flat*, holding no other object or list, needs only a separator that begins a new line, so
it is left to C, and so is a list of flat objects. What remains are the few that hold others.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

_STEP = "  "
_FLAT = frozenset({str, int, float, bool, type(None)})


def indented_json(data: Any, *, sort_keys: bool = False) -> str:
    """Write plain data down.

    Args:
        data: Objects, lists, text, numbers, booleans and ``None``.
        sort_keys: Whether the keys of every object are sorted.

    Returns:
        What ``json.dumps(data, indent=2, sort_keys=sort_keys)`` returns.
    """
    return _Writer(sort_keys=sort_keys).write(data, "\n")


class _Writer:
    """Writes values; a *break* is a line break and the indent of the line after it."""

    def __init__(self, *, sort_keys: bool) -> None:
        self._sort_keys = sort_keys
        self._encoders: dict[str, json.JSONEncoder] = {}

    def write(self, data: Any, line_break: str) -> str:
        """Write a value that ends on a line which begins with this break."""
        inner = line_break + _STEP
        if not data or not isinstance(data, dict | list | tuple):
            return self._in_c(data, inner)
        if _is_flat(data):
            text = self._in_c(data, inner)
        elif isinstance(data, dict):
            text = "{" + f",{inner}".join(self._items(data, inner)) + "}"
        elif all(isinstance(row, dict) and row and _is_flat(row) for row in data):
            text = self._rows(data, inner)
        else:
            text = "[" + f",{inner}".join(self.write(value, inner) for value in data) + "]"
        return text[0] + inner + text[1:-1] + line_break + text[-1]

    def _rows(self, rows: Iterable[dict[Any, Any]], inner: str) -> str:
        """A list of flat objects, which are told apart where they meet: no text has a break."""
        deep = inner + _STEP
        text = self._in_c(rows, deep)[2:-2]
        text = text.replace(f"}},{deep}{{", f"{inner}}},{inner}{{{deep}")
        return f"[{{{deep}{text}{inner}}}]"

    def _items(self, data: dict[Any, Any], inner: str) -> Iterator[str]:
        for key, value in sorted(data.items()) if self._sort_keys else data.items():
            name = self._in_c({key: 0}, inner)[1:-2]  # a key need not be text
            yield name + self.write(value, inner)

    def _in_c(self, data: Any, line_break: str) -> str:
        if line_break not in self._encoders:
            self._encoders[line_break] = json.JSONEncoder(
                separators=(f",{line_break}", ": "), sort_keys=self._sort_keys
            )
        return self._encoders[line_break].encode(data)


def _is_flat(data: dict[Any, Any] | list[Any] | tuple[Any, ...]) -> bool:
    return set(map(type, data.values() if isinstance(data, dict) else data)) <= _FLAT
