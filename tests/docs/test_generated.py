"""Generated reference pages are committed, and as the code would generate them now."""

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def load_pages() -> list[tuple[str, object]]:
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PAGES


@pytest.mark.parametrize(("name", "generate"), load_pages(), ids=lambda value: str(value)[:20])
def test_a_page_is_up_to_date(name, generate):
    """Run `make docs` and commit what it writes."""
    assert (DOCS / name).read_text(encoding="utf-8") == generate()
