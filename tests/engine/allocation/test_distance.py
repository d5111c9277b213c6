"""How far plans are apart, against a slow count of ranks carried from module to module."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fimlora.allocation import allocate
from fimlora.allocation.distance import moved_share, plans_apart
from fimlora.errors import InvalidOption
from fimlora.plan import Budget
from fimlora.scores import Scores
from support.allocation import COST, llama_like, named, scores_of

RANKS = st.lists(st.integers(0, 9), min_size=5, max_size=5).map(named)


def carried(a, b):
    """Ranks that have to leave a module, one at a time, until ``a`` is ``b``."""
    a, n = dict(a), 0
    while a != b:
        source = next(name for name in a if a[name] > b[name])
        target = next(name for name in a if a[name] < b[name])
        a[source] -= 1
        a[target] += 1
        n += 1
    return n


@given(RANKS, st.randoms(use_true_random=False))
def test_at_an_equal_budget_it_is_the_share_of_ranks_that_is_carried(a, rng):
    """Any two assignments of one sum: here one and a shuffle of it."""
    values = list(a.values())
    rng.shuffle(values)
    b = named(values)

    assert moved_share(a, b) == (carried(a, b) / sum(values) if any(values) else 0)


@given(RANKS, RANKS, st.lists(st.integers(1, 900), min_size=5, max_size=5).map(named))
def test_it_is_the_same_from_either_side_and_a_share(a, b, costs):
    """Nought for equal ranks only; parameters are carried rank by rank."""
    share = moved_share(a, b, costs=costs)

    assert share == moved_share(b, a, costs=costs)
    assert 0 <= share <= 1
    assert (share == 0) == (a == b)


def test_parameters_weigh_by_their_cost():
    """One rank of 300 parameters against three of 100: all of it lies elsewhere, or half."""
    costs = {"wide": 300, "narrow": 100}

    assert moved_share({"wide": 1, "narrow": 0}, {"wide": 0, "narrow": 3}, costs=costs) == 1
    assert moved_share({"wide": 2, "narrow": 0}, {"wide": 1, "narrow": 3}, costs=costs) == 0.5


def test_other_modules_are_refused_by_name():
    """They have no distance; the names say where the difference is."""
    with pytest.raises(InvalidOption, match=r"\['b', 'c'\] are in one only"):
        moved_share({"a": 1, "b": 1}, {"a": 1, "c": 1})
    with pytest.raises(InvalidOption, match=r"\['b'\] are missing"):
        moved_share({"a": 1, "b": 1}, {"a": 1, "b": 1}, costs={"a": 2})


def test_plans_are_compared_in_what_their_budget_counts():
    """Ranks at a budget of ranks, parameters at any other; never one with the other."""
    modules = llama_like()
    costs = {m.name: m.cost for m in modules}

    def plan(budget, seed):
        return allocate(Scores(modules, scores_of(modules, seed)), budget)

    ranks = plan(8, 0), plan(8, 1)
    parameters = [plan(Budget("parameters", 9 * COST), seed) for seed in (0, 1)]

    assert plans_apart(*ranks) == moved_share(ranks[0].ranks, ranks[1].ranks) > 0
    assert plans_apart(*parameters) == moved_share(
        parameters[0].ranks, parameters[1].ranks, costs=costs
    )
    with pytest.raises(InvalidOption, match="rank and parameters"):
        plans_apart(ranks[0], parameters[0])
