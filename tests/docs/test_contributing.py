"""The tree in CONTRIBUTING.md is the tree there is."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLACES = ("clients/python", "service", "worker")
LINE = re.compile(r"^( *)([\w/]+)/(?: |$)")


def told() -> Iterator[str]:
    """The folders that the tree names, as paths."""
    block = (ROOT / "CONTRIBUTING.md").read_text().split("```")
    tree = next(text for text in block if text.startswith("text\nclients/python/"))
    above: list[tuple[int, str]] = []
    for line in tree.splitlines():
        if found := LINE.match(line):
            indent, name = len(found[1]), found[2]
            above = [(depth, folder) for depth, folder in above if depth < indent]
            above.append((indent, name))
            yield "/".join(folder for _, folder in above)


def there() -> Iterator[str]:
    """The folders that hold code."""
    for place in PLACES:
        files = [*(ROOT / place).rglob("*.py"), *(ROOT / place).rglob("*.lua")]
        yield from {file.parent.relative_to(ROOT).as_posix() for file in files}


def test_the_tree_names_every_room_and_no_other():
    """A room that is added is told of, and one that goes is forgotten."""
    assert set(told()) - set(PLACES) == set(there())
