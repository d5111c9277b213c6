"""What the command says of a task head, whatever a rank map holds."""

import pytest

from fimlora_client.head_line import head_line

SCORES = {
    "held_out": {"loss": 1.0, "accuracy": 0.714},
    "constant": {"loss": 2.9, "accuracy": 0.12},
}
FITTED = {"kind": "fitted", "module": "classifier", "rows": 1024, "held_out_rows": 204}


@pytest.mark.parametrize(
    ("head", "wanted"),
    [
        (
            FITTED | SCORES | {"left_as_drawn": ["bert.pooler.dense"]},
            ("fitted on 1,024 rows: accuracy 0.71 held out, most frequent class 0.12; "
            "bert.pooler.dense left as drawn"),
        ),
        (FITTED | SCORES, "fitted on 1,024 rows: accuracy 0.71 held out, most frequent class 0.12"),
        (
            FITTED | {"held_out": {"loss": 1, "r2": 0.5}, "constant": {"loss": 2, "r2": 0}},
            "fitted on 1,024 rows: R² 0.50 held out",
        ),
        (FITTED | {"rows": 8}, "fitted on 8 rows, too few to hold some out"),
        ({"kind": "fresh", "left_as_drawn": ["score"]}, "as it was drawn, so its feedback is random"),
        ({"kind": "pretrained"}, ""),
        ({"kind": "of a later service"}, ""),
        (None, ""),
    ],
)  # fmt: skip
def test_a_line_for_each_kind(head, wanted):
    assert head_line(head) == wanted
