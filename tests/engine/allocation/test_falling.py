"""Spectra as tables: what each module has of its largest values, sorted once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fimlora.allocation.falling import Falling
from fimlora.errors import InvalidScore

SPECTRA = st.dictionaries(
    st.text(max_size=3), st.lists(st.floats(0, 9), max_size=5), min_size=1, max_size=6
)


@given(spectra=SPECTRA, width=st.integers(0, 6))
def test_a_table_holds_what_sorting_each_module_by_itself_gives(spectra, width):
    """In the order of the modules, whatever their numbers of values; zeros where one has none."""
    found = Falling.of(spectra)

    found.check()
    wanted = [sorted(values, reverse=True)[:width] for values in spectra.values()]
    assert found.counts.tolist() == [*map(len, spectra.values())]
    assert found.table(width).tolist() == [[*v, *[0.0] * (width - len(v))] for v in wanted]
    assert Falling.of(found) is found


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, "a", None])
def test_what_is_no_singular_value_is_refused_by_its_module(value):
    """Wherever it stands among sound ones."""
    spectra = {"a": np.ones(3), "b": [1.0, value, 2.0], "c": [1.0]}

    with pytest.raises(InvalidScore, match="'b'"):
        Falling.of(spectra).check()
