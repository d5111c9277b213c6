"""Steps taken by worth: as one would take them one by one, sorted."""

import numpy as np
import pytest

from fimlora.allocation.greedy import take_by_worth, take_from_table


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


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_table_of_steps_as_one_by_one(is_tied):
    """Rows that begin and end at different steps, each of which has one price."""
    rng = np.random.default_rng(1)
    for _ in range(300):
        n, first, width = int(rng.integers(1, 12)), int(rng.integers(0, 3)), 6
        worth = rng.integers(0, 4, (n, width)) if is_tied else rng.lognormal(0, 2, (n, width))
        worth = -np.sort(-worth.astype(np.float64), axis=1)
        lowest = rng.integers(first, first + width, n)
        lowest[0] = first
        highest = np.minimum(lowest + rng.integers(0, width + 1, n), first + width)
        price, precedence = rng.integers(1, 9, n).astype(np.float64), rng.permutation(n)
        steps = [(i, step) for i in range(n) for step in range(lowest[i], highest[i])]
        costs = [int(price[i]) for i, _ in steps]
        limit = int(rng.integers(0, sum(costs) + 2))

        taken = take_from_table(worth, price, lowest, highest, precedence, limit=limit)
        wanted = one_by_one(
            [worth[i, step - first] for i, step in steps],
            costs,
            [i for i, _ in steps],
            [step for _, step in steps],
            precedence.tolist(),
            limit,
        )
        assert taken.tolist() == wanted
