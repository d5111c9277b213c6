"""Rows without any text are refused before they are queued; one with text is enough."""

import pytest

from fimlora_jobs.datasets.checks import check_rows
from fimlora_jobs.datasets.columns import ColumnError, TextFields

BLANK = ["", "  ", "\n\t", "\u00a0"]
PAIR = TextFields(text="premise", text_pair="hypothesis", label="label")
TOLD = TextFields(instruction="instruction", completion="output", input="input")
SHOWN = TextFields(text="text", images="images")


def placed(rows):
    return [(f"row {i}", row) for i, row in enumerate(rows)]


def check(fields, rows, **options):
    return check_rows(placed(rows), fields, **options)


def test_blank_texts_are_refused_with_their_column():
    """Of one kind of spaces or another."""
    rows = [{"text": text, "label": i % 2} for i, text in enumerate(BLANK)]
    fields = TextFields(text="text", label="label")

    with pytest.raises(ColumnError, match=r"all 4 rows are blank: .* in 'text'; give rows"):
        check(fields, rows)
    assert check(fields, [*rows, {"text": "so", "label": 1}]).rows == 5


@pytest.mark.parametrize("part", ["premise", "hypothesis"])
def test_one_text_of_a_pair_is_enough(part):
    """Both are named where neither has any."""
    rows = [{"premise": " ", "hypothesis": "", "label": n % 2} for n in range(3)]

    with pytest.raises(ColumnError, match="in 'premise' and 'hypothesis'"):
        check(PAIR, rows)
    assert check(PAIR, [*rows, rows[0] | {part: "so"}]).rows == 4


@pytest.mark.parametrize("change", [{"input": "so"}, {"output": "so"}, {"instruction": "so"}])
def test_one_part_of_an_instruction_is_enough(change):
    """An input may be missing, which is blank, too."""
    row = {"instruction": "", "output": " ", "input": None}

    with pytest.raises(ColumnError, match="all 1 rows are blank"):
        check(TOLD, [row])
    assert check(TOLD, [row | change]).rows == 1


def test_rows_that_are_not_all_seen_or_that_show_something_are_let_be():
    """Text may come later, or what is shown is enough; no rows at all are refused elsewhere."""
    blank = [{"text": ""}] * 4
    fields = TextFields(text="text")

    assert check(fields, blank, most=4).rows is None
    assert check(SHOWN, [{"text": "", "images": []}]).rows == 1
    assert check(fields, []).rows == 0
