"""Orders are those of a stable sort, however many numbers are equal."""

import numpy as np
import pytest

from fimlora.allocation.sorting import FEW, stable_order, stable_order_of_whole

N = 2 * FEW


@pytest.mark.parametrize("n_values", [1, 3, 500, N, 10 * N])
@pytest.mark.parametrize("n", [0, 1, FEW - 1, FEW, N])
def test_an_order_is_a_stable_sorts(n, n_values):
    """Of floats with few and with many ties."""
    values = np.random.default_rng(n + n_values).integers(0, n_values, n) / 7 - 3

    assert stable_order(values).tolist() == np.argsort(values, kind="stable").tolist()


@pytest.mark.parametrize("top", [1, 100, 1 << 16, (1 << 16) + 1, 1 << 20, 1 << 31, 1 << 40])
@pytest.mark.parametrize("n", [0, 1, FEW, N])
def test_an_order_of_whole_numbers_is_a_stable_sorts(n, top):
    """Below zero and above, and too large for counting."""
    values = np.random.default_rng(n).integers(-top, top, n).astype(np.float64)

    assert stable_order_of_whole(values).tolist() == np.argsort(values, kind="stable").tolist()


def test_zeros_of_both_signs_are_equal():
    """Their bits differ, and they are a tie."""
    values = np.tile([0.0, -0.0, 1.0], N)

    for order in (stable_order, stable_order_of_whole):
        assert order(values).tolist() == np.argsort(values, kind="stable").tolist()
