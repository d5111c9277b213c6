"""The table of formats says what is read and what tests load, train and verify."""

import re
from pathlib import Path

import pytest
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from fimlora.model.packed_parts import READABLE
from support.quantised import FORMATS

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "quantised.md"
METHOD = re.compile(r"`([a-z0-9-]+)`")


def table():
    """Cells by method: as a checkpoint, live, trained."""
    rows = [line.split("|")[1:-1] for line in PAGE.read_text().splitlines() if line[:1] == "|"]
    found = {}
    for first, *cells in rows[2:]:
        # The names of a cell before its first comma outside of these are methods.
        names = [first] if "eetq" in first else [first.partition(",")[0]]
        for method in METHOD.findall(names[0]):
            found[method] = [cell.strip() for cell in cells]
    return found


TABLE = table()
TESTED = {name.partition("_")[0] for name in FORMATS}


def test_every_method_that_is_read_or_tested_has_a_row():
    """And what has one is known to transformers."""
    known = {
        name.removesuffix("_4bit").removesuffix("_8bit") for name in AUTO_QUANTIZER_MAPPING
    }

    assert TABLE.keys() >= TESTED | set(READABLE)
    assert TABLE.keys() <= known


@pytest.mark.parametrize("method", TABLE)
def test_a_row_says_what_holds(method):
    """Read as a checkpoint or refused; live and trained where a test does both."""
    checkpoint, live, trained = TABLE[method]

    assert checkpoint == ("yes" if method in READABLE else "refused")
    assert live.startswith("yes") == (method in TESTED)
    assert (trained == "yes") == (method in TESTED)
