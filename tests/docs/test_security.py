"""What the page on security claims is tested: each test that it names exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py::[\w:]+)`", PAGE)))


def names_in(path: Path) -> set[str]:
    """Names of the tests of a file as pytest collects them, without parameters."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        found |= {
            f"{prefix}{each.name}"
            for each in inner
            if isinstance(each, ast.FunctionDef) and each.name.startswith("test_")
        }
    return found


@pytest.mark.parametrize("name", NAMED)
def test_a_named_test_is_there(name: str):
    """In the file and class that the page says."""
    path, _, test = name.partition("::")

    assert test in names_in(ROOT / path)


def test_every_threat_names_a_test():
    """And every risk of the list."""
    _, _, threats = PAGE.partition("## Threats")
    lines = threats.partition("## Settings")[0].splitlines()
    heads = ("| threat ", "| risk ", "| --- ")
    rows = [line for line in lines if line.startswith("| ") and not line.startswith(heads)]

    assert len(rows) > 25
    assert [row for row in rows if "`tests/" not in row] == []
    assert {f"API{n}" for n in range(1, 11)} <= {row[2:].split(" ")[0] for row in rows}


def test_every_file_of_security_tests_is_named():
    """A test that nobody points to is found by nobody."""
    files = {
        f"tests/security/{path.name}" for path in (ROOT / "tests/security").glob("test_*.py")
    }

    assert files <= {name.partition("::")[0] for name in NAMED}
