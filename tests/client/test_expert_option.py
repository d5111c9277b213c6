"""``--experts`` as an allocation has it."""

import pytest
import typer

from fimlora_client.cli.common.constraints import experts_of


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (None, {}),
        ("routed:0.25", {"experts": {"select": "routed", "share": 0.25}}),
        ("fisher:share=0.5", {"experts": {"select": "fisher", "share": 0.5}}),
        ("random:coverage=0.8", {"experts": {"select": "random", "coverage": 0.8}}),
    ],
)
def test_an_option_is_read(given, wanted):
    """A share, unless another word stands before the number."""
    assert experts_of(given) == wanted


@pytest.mark.parametrize("given", ["routed", "routed:", "routed:a", "0.25", "routed:share="])
def test_what_is_no_number_is_refused(given):
    """With both forms."""
    with pytest.raises(typer.BadParameter, match=r"SELECT:SHARE such as routed:0.25"):
        experts_of(given)
