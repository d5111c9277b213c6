"""Say what a file is called, not where it lies on the server.

Libraries put whole paths into their messages. What users know a model or a dataset by is left
of them: its registered name, its name on the hub, or the last part of the path.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

ROOMS = ("models", "datasets", "adapters", "uploads", "artifacts", "tmp", "digests", "hub", "")
LINKS_IN = ("models", "datasets", "adapters")
ON_HUB = re.compile(
    r"(?:[\w.-]+/)*(?:models|datasets)--([\w.-]+?)--([\w.-]+?)/(?:snapshots|blobs|refs)/\w+"
)
# Two parts at least: a single one is no place, and may be half of a unit or of an alternative.
ABSOLUTE = re.compile(r"(?<![\w.:/~-])/(?P<first>[\w.-]+)(?:/[\w.@+=,~%-]*)+")

# Of other machines: a mirror inside, or a signed one that opens what it names.
ADDRESS = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s'\"<>]*[^\s'\"<>.,;:)]")


def hide_addresses(text: str) -> str:
    """A message without the addresses that the server has called."""
    return ADDRESS.sub("(an address that is the operator's)", text)


def hide_paths(text: str, *, root: Path | None = None) -> str:
    """A message without the server's paths.

    Args:
        text: The message.
        root: The data folder; its paths become the names that users know.
    """
    for path, name in _known(root) if root else ():
        text = text.replace(path, name)
    text = ON_HUB.sub(r"\1/\2", text)
    return ABSOLUTE.sub(_shortened, text)


def _known(root: Path) -> Iterator[tuple[str, str]]:
    """What to write for what; the longest paths first, as some begin with others."""
    found: dict[str, str] = {}
    for room in LINKS_IN:
        for path in _links(root / room):
            target = os.path.realpath(path)  # a loop of links leads to itself
            found[f"{target}/"] = f"{path.name}/"
            found[target] = path.name
    for base in {str(root.absolute()), os.path.realpath(root)}:
        for room in ROOMS:
            folder = str(Path(base) / room)
            found[f"{folder}/"] = ""
            found.setdefault(folder, room or "the data folder")
    yield from sorted(found.items(), key=lambda item: -len(item[0]))


def _links(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_symlink()]
    except OSError:
        return []


def _shortened(match: re.Match[str]) -> str:
    path = match[0]
    if not Path(f"/{match['first']}").exists():  # no path of this machine
        return path
    return path.rstrip("/.,").rpartition("/")[2] + path[len(path.rstrip("/.,")) :].lstrip("/")
