"""The parts of a ``config.json``: itself, and those of what it is composed of."""

from collections.abc import Iterator, Mapping
from typing import Any

MAX_DEPTH = 32
# How compositions name what reads text.
TEXT_PARTS = ("text_config", "language_config", "llm_config", "decoder")


def parts_of(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A configuration and every object inside it, outer ones first."""
    waiting = [config]
    while waiting:
        part = waiting.pop(0)
        yield part
        waiting.extend(value for value in part.values() if isinstance(value, Mapping))


def text_parts(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What describes the layers that read text: the configuration itself, and its text part."""
    inner = (config.get(name) for name in TEXT_PARTS)
    return [config, *(part for part in inner if isinstance(part, Mapping))]


def depth_of(value: Any) -> int:
    """How deeply objects and lists lie in each other."""
    depth, level = 0, [value]
    while level and depth <= MAX_DEPTH:
        depth += 1
        level = [
            inner
            for outer in level
            if isinstance(outer, Mapping | list)
            for inner in (outer.values() if isinstance(outer, Mapping) else outer)
        ]
    return depth
