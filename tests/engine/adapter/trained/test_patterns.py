"""Keys of patterns against PEFT's own rule."""

import random

import pytest
from peft.utils.other import get_pattern_key

from fimlora.adapter.trained.patterns import first_keys
from fimlora.errors import InvalidAdapter

NAMES = [
    "model.layers.1.self_attn.q_proj",
    "model.layers.11.self_attn.q_proj",
    "model.layers.1.mlp.up_proj",
    "vision.model.layers.1.self_attn.q_proj",
    "q_proj",
    "model.layersX1.self_attn.q_proj",
    "score",
]
KEYS = [
    "model.layers.1.self_attn.q_proj",
    "^model.layers.1.self_attn.q_proj",
    r"model\.layers\.1\.self_attn\.q_proj",
    "layers.1.self_attn.q_proj",
    "base_model.model.q_proj",
    "_proj",
    "q_proj",
    ".*1.self_attn.q_proj",
    r"layers\.(0|1)\..*_proj",
    r"layers.[0-9]+.mlp.(up|down)_proj",
    "self_attn",
    "score",
    "s.ore",
    "^score",
    "",
    r"^.*\.1\.mlp\.up_proj",
    "x|score",
]


@pytest.mark.parametrize("seed", range(60))
def test_the_first_key_that_holds_is_that_of_peft(seed):
    """Plain names and true expressions in any order, looked up or run."""
    keys = random.Random(seed).sample(KEYS, k=1 + seed % len(KEYS))

    found = first_keys("rank_pattern", keys, NAMES)

    assert {name: found.get(name, name) for name in NAMES} == {
        name: get_pattern_key(keys, name) for name in NAMES
    }


def test_a_key_per_module_is_looked_up():
    """Ten thousand modules, each with its own key under its full name."""
    names = [f"model.layers.{i}.{j}.q_proj" for i in range(100) for j in range(100)]

    assert first_keys("rank_pattern", names[::-1], names) == {name: name for name in names}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([r"(?:(?:[a-z]|[a-z_.])+)+(?<!x)"], "takes more than"),
        (["[a"], "no regular expression"),
        (["a" * i + "." + "b" * (600 - i) for i in range(2, 300)], "different forms"),
    ],
    ids=["endless", "broken", "forms"],
)
def test_keys_that_cannot_be_matched_in_time_are_refused(keys, message):
    """An expression that backtracks without end holds nobody up."""
    with pytest.raises(InvalidAdapter, match=message):
        first_keys("rank_pattern", keys, ["a" * 60 + "x"], seconds=0.2)
