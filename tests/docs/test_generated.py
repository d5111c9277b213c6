"""What is made from the code is committed, and as the code would make it now."""

import importlib.util
from pathlib import Path

import pytest

from fimlora_client import Client

ROOT = Path(__file__).parents[2]


def load_generator():
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs/generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATOR = load_generator()


@pytest.mark.parametrize(
    ("path", "generate"),
    GENERATOR.PAGES,
    ids=[str(path.relative_to(ROOT)) for path, _ in GENERATOR.PAGES],
)
def test_a_page_is_up_to_date(path, generate):
    """Run `make docs` and commit what it writes."""
    assert path.read_text(encoding="utf-8") == generate()


def test_the_reference_describes_all_of_the_client():
    """A resource that is added to the client is added to its page."""
    page = (ROOT / "docs/client.md").read_text(encoding="utf-8")

    with Client() as client:
        resources = [name for name, value in vars(client).items() if hasattr(value, "_sender")]

    assert len(resources) >= 6
    assert [name for name in resources if f"## client.{name}\n" not in page] == []


def test_the_blocking_client_has_no_file_that_nobody_makes():
    """A file whose source is gone would go on being shipped."""
    assert set(GENERATOR.TARGET.glob("*.py")) <= {path for path, _ in GENERATOR.PAGES}
