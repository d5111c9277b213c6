"""What is pinned can be installed with every Python that is said to be enough."""

from importlib import metadata
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
OLDEST = "3.11.0"


def pinned() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line.partition("==")[0] for line in lines if "==" in line and line[0] != "#"]


def test_the_oldest_python_can_install_what_is_pinned() -> None:
    """A patch release matters: distributions carry 3.11.2 for years."""
    said = {
        canonicalize_name(found.name): found.metadata.get("Requires-Python") or ""
        for found in metadata.distributions()
    }
    known = [name for name in map(canonicalize_name, pinned()) if name in said]
    assert len(known) > 50
    refusing = {name: said[name] for name in known if OLDEST not in SpecifierSet(said[name])}
    assert not refusing
