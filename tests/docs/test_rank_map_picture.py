"""The rank map of the README is drawn as the product draws one."""

from pathlib import Path

from fimlora.adapter.rank_map_picture import PICTURE_STYLE

ROOT = Path(__file__).parents[2]


def test_the_picture_is_of_the_present_drawing():
    """A change of the drawing asks for a new one: the artefact of the demonstration's job."""
    picture = (ROOT / "docs" / "rank_map.svg").read_text(encoding="utf-8")

    assert PICTURE_STYLE in picture
    for said in ("model: minilm", ">layer</text>", "signal:", "score over the mean score"):
        assert said in picture
