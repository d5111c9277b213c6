"""Steps taken by worth: as one would take them one by one, sorted."""

import numpy as np
import pytest

from fimlora.allocation.greedy import take_by_worth


def one_by_one(worth, price, row, step, precedence, limit):
    """All steps sorted, each taken if it fits and none of its row was passed over."""
    order = sorted(range(len(worth)), key=lambda i: (-worth[i], step[i], precedence[row[i]]))
    taken, closed = [0] * len(precedence), set()
    for i in order:
        if price[i] <= limit and row[i] not in closed:
            taken[row[i]] += 1
            limit -= price[i]
        else:
            closed.add(row[i])
    return taken


def drawn_steps(rng, *, is_tied, is_even):
    """Some rows of steps whose worth falls."""
    worth, price, row, step = [], [], [], []
    for i in range(n := int(rng.integers(1, 12))):
        m = int(rng.integers(0, 7))
        drawn = rng.integers(0, 4, m) if is_tied else rng.lognormal(0, 2, m)
        cost = int(rng.integers(1, 9))
        worth += sorted(map(float, drawn), reverse=True)
        price += [cost * (1 if is_even else int(rng.integers(1, 4))) for _ in range(m)]
        row += [i] * m
        step += range(m)
    return worth, price, row, step, rng.permutation(n)


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("is_even", [True, False])
def test_as_one_by_one(is_tied, is_even):
    rng = np.random.default_rng(0)
    for _ in range(300):
        worth, price, row, step, precedence = drawn_steps(rng, is_tied=is_tied, is_even=is_even)
        limit = int(rng.integers(0, sum(price) + 2))
        taken = take_by_worth(
            np.array(worth, dtype=np.float64),
            *(np.array(some, dtype=np.intp) for some in (price, row, step)),
            precedence,
            limit=limit,
            chunk=int(rng.integers(1, 6)),
        )
        wanted = one_by_one(worth, price, row, step, precedence.tolist(), limit)
        assert taken.tolist() == wanted
