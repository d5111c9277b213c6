"""The pages of methods: one for each, a screen long, with what they cite."""

import importlib.util
import re
from pathlib import Path

import pytest

from fimlora.methods.registry import METHODS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs/methods"
A_SCREEN = 60  # lines


def load_page():
    spec = importlib.util.spec_from_file_location("methods_page", ROOT / "docs/methods_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGE = load_page()


@pytest.mark.parametrize("name", METHODS)
def test_each_method_has_a_row_and_a_page_of_a_screen(name):
    """With its signal, passes, memory, source, how it was checked, and what was left out."""
    assert name in PAGE.ROWS, f"docs/methods_page.py has no row for {name}"
    text = (FOLDER / f"{PAGE.PAGES.get(name, name)}.md").read_text(encoding="utf-8")

    assert f"`{name}`" in text.splitlines()[0]
    assert len(text.splitlines()) <= A_SCREEN
    for heading in ("Passes", "Memory", "Source", "Checked here", "Left out"):
        assert re.search(rf"\*\*{heading}", text), heading
    assert re.search("strong default|shown to beat uniform", text)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.md")), ids=lambda path: path.stem)
def test_what_a_page_cites_is_there(path):
    """Tests by their files, pages by their links."""
    text = path.read_text(encoding="utf-8")

    for cited in re.findall(r"`(tests/[\w/]+\.py)", text):
        assert (ROOT / cited).exists(), cited
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (path.parent / link).exists(), link


def test_the_table_cites_tests_that_are_there():
    """As far as it names files; and has no row of a method that nobody knows."""
    assert PAGE.ROWS.keys() == METHODS.keys()
    for name in METHODS:
        for cited in re.findall(r"`(engine/[\w/]+\.py)", PAGE.ROWS[name].checked):
            assert (ROOT / "tests" / cited).exists(), cited
