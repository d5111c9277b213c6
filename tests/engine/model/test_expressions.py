"""Expressions over names: as PEFT reads them, and never without end."""

import re
import time

import pytest

from fimlora.errors import InvalidOption
from fimlora.model.expressions import matching

NAMES = [
    f"model.{part}.layers.{i}.self_attn.{leaf}"
    for part in ("language_model", "vision_tower")
    for i in (0, 1, 11)
    for leaf in ("q_proj", "v_proj")
]


@pytest.mark.parametrize(
    "expression",
    [
        r".*\.(q|v)_proj",
        r"model\.language_model\..*(?<!q)_proj",
        r".*\.layers\.(?P<i>1)(?P=i)\..*",
        r"(?i).*LANGUAGE.*\d{2}.*",
        r".*layers.[^1].*|.*\bvision_tower\b.*v_proj",
        "q_proj",
    ],
)
def test_it_matches_what_python_matches(expression):
    """The whole name, and nothing less."""
    wanted = {name for name in NAMES if re.fullmatch(expression, name)}

    assert matching("target_modules", expression, NAMES) == wanted


def test_an_endless_one_is_stopped():
    """By the time all names take together."""
    began = time.monotonic()

    with pytest.raises(InvalidOption, match=r"exclude_modules=.* takes more than 0.2 s"):
        matching("exclude_modules", r"(?:(?:[a-z]|[a-z_.\d])+)+(?<!j)", NAMES, seconds=0.2)

    assert time.monotonic() - began < 20


@pytest.mark.parametrize("expression", ["(q", "[[", "(?P<a>x)(?P<a>y)", r"\p{L}", "(" * 600])
def test_what_python_does_not_know_is_refused(expression):
    """Also where another engine would read it."""
    with pytest.raises(InvalidOption, match="is no regular expression"):
        matching("target_modules", expression, NAMES)
