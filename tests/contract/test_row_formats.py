"""What rows were recognised as, by name."""

import pytest

from fimlora_contract.references import Columns
from fimlora_contract.row_formats import row_format
from fimlora_jobs.datasets.columns import find_fields


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        (["instruction", "input", "output"], "Alpaca"),
        (["conversations"], "ShareGPT"),
        (["messages", "tools"], "chat messages"),
        (["prompt", "completion"], "prompts and completions"),
        (["text", "label"], "texts with a label"),
        (["premise", "hypothesis", "label"], "pairs of texts with a label"),
        (["content", "url"], "texts"),
    ],
)
def test_rows_go_by_the_name_that_people_know(columns, name):
    """With the columns that are read, and no other."""
    fields = find_fields(columns, columns=Columns())
    used = {column for column in columns if column != "url"}

    found, _, listed = row_format({role: getattr(fields, role) for role in ROLES}).partition(
        ": "
    )

    assert found == name
    assert set(listed.split(", ")) == used


ROLES = Columns.model_fields
