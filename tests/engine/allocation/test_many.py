"""Many plans at once are, rank by rank, what plain loops make of each."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from fimlora.allocation.many import _BLOCK, share_many
from fimlora.allocation.units import exact_sums, gather_units
from fimlora.errors import InfeasibleBudget, InvalidScore
from support.allocation import llama_like, named, shared_in_loops

EXTREME = st.sampled_from([0.0, 5e-324, 1e-300, 1.0, 1.0, 2.0, 1e300])
SCORE = st.one_of(
    EXTREME, st.floats(0, 1e300), st.floats(0.1, 10), st.integers(0, 4).map(float)
)


@st.composite
def any_case(draw):
    """Bounds, ranks or costs, multiples and groups of up to twelve modules, and many vectors."""
    n = draw(st.integers(1, 12))
    names = list(named(range(n)))
    lowest = {name: draw(st.integers(0, 4)) for name in names}
    highest = {name: draw(st.integers(lowest[name], 12)) for name in names}
    weights = {name: draw(st.integers(1, 40)) for name in names}
    tied = draw(st.integers(0, n))
    step = draw(st.sampled_from([1, 1, 1, 2, 4]))
    menu = draw(st.sampled_from([(), (1, 2, 4, 8, 16), (1, 3, 5, 6, 12), (2, 9, 10)]))
    options = {
        "lowest": lowest,
        "highest": highest,
        "weights": draw(st.sampled_from([None, weights])),
        "multiple_of": 1 if menu else step,
        "rank_menu": menu,
        "groups": [names[: tied // 2], names[tied // 2 : tied]],
    }
    used = options["weights"] or dict.fromkeys(names, 1)
    least, most = (sum(used[m] * bound[m] for m in names) for bound in (lowest, highest))
    limit = draw(st.integers(least, most + (9 if options["weights"] else 0)))
    vector = st.lists(SCORE, min_size=n, max_size=n)
    return names, options, limit, draw(st.lists(vector, min_size=1, max_size=8))


@settings(max_examples=600)
@given(any_case())
def test_every_row_is_the_plan_that_is_solved_alone(case):
    """Zeros, huge ranges, ties, bounds, costs, multiples, menus and groups: the same ranks."""
    names, options, limit, vectors = case
    try:
        units = gather_units(names, **options)
        units.affordable(limit)
    except InfeasibleBudget:
        reject()

    ranks = share_many(units, np.array(vectors), limit)

    vectors = [dict(zip(names, vector, strict=True)) for vector in vectors]
    alone = [shared_in_loops(scores, limit=limit, **options) for scores in vectors]
    assert [dict(zip(names, row, strict=True)) for row in ranks.tolist()] == alone


@pytest.mark.parametrize("in_ranks", [True, False], ids=["ranks", "parameters"])
@pytest.mark.parametrize("spread", [0.05, 0.5, 3.0, 40.0])
def test_plans_of_a_whole_model_are_the_same_row_by_row(in_ranks, spread):
    """Hundreds of modules, a thousand vectors around one: what a bootstrap asks for."""
    modules = llama_like(60)
    names, rng = [m.name for m in modules], random.Random(7)
    costs = {m.name: m.cost for m in modules}
    options = {
        "lowest": dict.fromkeys(names, 4),
        "highest": dict.fromkeys(names, 16),
        "weights": None if in_ranks else costs,
    }
    units = gather_units(names, **options)
    limit = 8 * len(names) if in_ranks else 8 * sum(costs.values()) + 77
    center = [rng.lognormvariate(0, spread) for _ in names]
    vectors = np.array([[c * rng.lognormvariate(0, 0.1) for c in center] for _ in range(1000)])

    ranks = share_many(units, vectors, limit)

    for row in range(0, 1000, 50):
        scores = dict(zip(names, vectors[row].tolist(), strict=True))
        assert ranks[row].tolist() == list(
            shared_in_loops(scores, limit=limit, **options).values()
        )


def test_more_vectors_than_one_block_holds():
    """The last of one, the first of the next and the last of all are solved alike."""
    names = list(named(range(300)))
    bounds = {"lowest": dict.fromkeys(names, 1), "highest": dict.fromkeys(names, 9)}
    units = gather_units(names, **bounds)
    fill_one = _BLOCK // 300
    vectors = np.random.default_rng(0).lognormal(size=(2 * fill_one + 4, 300))

    ranks = share_many(units, vectors, 4 * 300)

    for row in (fill_one - 1, fill_one, 2 * fill_one, len(vectors) - 1):
        scores = dict(zip(names, vectors[row].tolist(), strict=True))
        alone = shared_in_loops(scores, limit=4 * 300, **bounds)
        assert ranks[row].tolist() == list(alone.values())


# Halves of the last bit: where rounding is a tie, or nearly.
TRICKY = st.sampled_from([0.0, 1.0, 2.0**-53, 2.0**-52, 1 - 2.0**-53, 2.0**-54, 3 * 2.0**-54,
                          2.0**-106, 2.0**-107, 2.0**-200, 0.1])  # fmt: skip


@settings(max_examples=500)
@given(st.lists(st.one_of(TRICKY, st.floats(0, 1e9)), min_size=1, max_size=40))
def test_sums_are_correctly_rounded(values):
    """As math.fsum has them, whatever is lost on the way."""
    assert exact_sums(np.array([values, values[::-1]])).tolist() == [math.fsum(values)] * 2


@pytest.mark.parametrize("score", [math.nan, math.inf, -1.0])
def test_a_score_no_rule_can_share_by_is_refused(score):
    """Wherever it stands."""
    names = ["a", "b"]
    units = gather_units(names, lowest=dict.fromkeys(names, 1), highest=dict.fromkeys(names, 9))

    with pytest.raises(InvalidScore, match="finite and not negative"):
        share_many(units, np.array([[1.0, 1.0], [1.0, score]]), 8)


@given(
    st.integers(1, 5).flatmap(
        lambda n: st.lists(
            st.lists(
                st.builds(lambda m, e: m * 2.0**e, st.integers(0, 2**53), st.integers(-3, 3)),
                min_size=n,
                max_size=n,
            ),
            min_size=1,
            max_size=6,
        )
    )
)
def test_sums_of_few_numbers_are_exact_where_half_of_them_lie_between_two_floats(rows):
    """As `math.fsum`, also in the middle, where nothing but the even one of both is right."""
    assert exact_sums(np.array(rows)).tolist() == [math.fsum(row) for row in rows]


@pytest.mark.parametrize("options", [{}, {"multiple_of": 3}, {"rank_menu": (2, 3, 8)}], ids=str)
@given(quotas=st.lists(st.floats(0, 8), min_size=1, max_size=40))
def test_steps_are_those_that_a_search_of_the_allowed_ranks_finds(options, quotas):
    """Whether there are more quotas than ranks or fewer, and whole ones on the rank itself."""
    units = gather_units("a", lowest={"a": 0}, highest={"a": 8}, **options)
    within = np.minimum([quotas, np.floor(quotas)], units.ladder[-1])

    found = units.steps_below(within)
    assert found.tolist() == (np.searchsorted(units.ladder, within, side="right") - 1).tolist()
