"""JSON with an indent: the same bytes as the standard library's, which name results."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fimlora import allocate
from fimlora.indented import indented_json
from fimlora.text_files import rank_map
from support.results import make_statistics

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
# What stands between the items of a flat value, and could be taken for it inside a text.
TRAPS = st.sampled_from(
    ["},\n      {", "},\n    {", '"},\n  {"', "\n", '",\n    "', "}", "{", "]", "["]
)
VALUES = st.recursive(
    LEAVES | TRAPS,
    lambda inner: (
        st.lists(inner)
        | st.lists(st.dictionaries(st.text() | TRAPS, LEAVES | TRAPS), min_size=1)
        | st.dictionaries(st.text() | TRAPS, inner)
    ),
)  # fmt: skip


@pytest.mark.parametrize("sort_keys", [False, True])
@given(data=VALUES)
def test_any_data_is_written_as_the_library_writes_it(sort_keys, data):
    """Nested, flat and empty values, and texts that look like the places between two."""
    expected = json.dumps(data, indent=2, sort_keys=sort_keys)

    assert indented_json(data, sort_keys=sort_keys) == expected


@pytest.mark.parametrize(
    "data",
    [{1: {2: [3]}}, {None: [], True: {}}, (1, (2, {"a": ()})), [{}], [{}, {"a": 1}], math.inf],
    ids=str,
)
def test_keys_that_are_no_text_tuples_and_empty_values_are_written_alike(data):
    """All that the library takes."""
    assert indented_json(data) == json.dumps(data, indent=2)


def test_a_rank_map_is_written_alike():
    """The largest of what is written, with numbers of all sizes."""
    data = rank_map(allocate(make_statistics(), budget=8))

    assert indented_json(data) == json.dumps(data, indent=2)


def test_what_is_no_plain_data_is_refused():
    """As the library does."""
    with pytest.raises(TypeError, match="not JSON serializable"):
        indented_json({"a": [object()]})
