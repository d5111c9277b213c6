"""Proportional shares: nearest to the real-valued ones, against the paper, at hard numbers."""

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fimlora.allocation import allocate_ranks
from fimlora.errors import InfeasibleBudget, InvalidScore
from support.allocation import cases, named


def paper_call(scores, base_r, r_min, r_max=None):
    """Our solver behind the signature of the published code."""
    scores = {name: float(score) for name, score in scores.items()}
    return allocate_ranks(
        scores,
        limit=base_r * len(scores),
        lowest=dict.fromkeys(scores, r_min),
        highest=dict.fromkeys(scores, r_max or 2 * base_r),
    )


# --- optimal against brute force ---------------------------------------------------------


def quotas_by_bisection(scores, limit, lowest, highest, weights):
    """The real-valued water-filling solution, found by halving an interval 300 times."""
    largest = max(scores.values()) or 1.0
    q = {n: max(s / largest, 1e-12) if max(scores.values()) else 1.0 for n, s in scores.items()}

    def quotas(level):
        return {n: min(max(level * q[n], lowest[n]), highest[n]) for n in q}

    low, high = 0.0, 1e15
    for _ in range(300):
        middle = (low + high) / 2
        spent = sum(weights[n] * x for n, x in quotas(middle).items())
        low, high = (middle, high) if spent < limit else (low, middle)
    return quotas(high)


@settings(max_examples=60)
@given(cases(st.floats(1e-6, 1e3), max_size=5, top=5))
def test_no_whole_ranks_are_closer_to_the_real_valued_shares(case):
    """Among all ranks in bounds that meet the budget, ours are nearest to the quotas."""
    scores, options = case
    quotas = quotas_by_bisection(scores, **options, weights=dict.fromkeys(scores, 1))
    choices = [range(options["lowest"][n], options["highest"][n] + 1) for n in scores]

    def distance(ranks):
        return sum(abs(r - quotas[n]) for n, r in zip(scores, ranks, strict=True))

    best = min(
        distance(ranks)
        for ranks in itertools.product(*choices)
        if sum(ranks) == options["limit"]
    )

    ours = allocate_ranks(scores, **options)
    assert distance(ours.values()) <= best + 1e-4
    assert all(abs(r - quotas[n]) < 1 + 1e-6 for n, r in ours.items())


@settings(max_examples=60)
@given(cases(st.floats(1e-6, 1e3), most_cost=40))
def test_parameter_budgets_start_from_the_real_valued_shares(case):
    """No module gets less than the floor of its quota by bisection."""
    scores, options = case
    ceiling = sum(options["weights"][n] * r for n, r in options["highest"].items())
    quotas = quotas_by_bisection(scores, **options | {"limit": min(options["limit"], ceiling)})

    ranks = allocate_ranks(scores, **options)

    assert all(ranks[n] >= math.floor(quotas[n] - 1e-6) for n in scores)


# --- against the paper -------------------------------------------------------------------


def algorithm_1(scores, base_r, r_min, r_max):
    """The paper's two phases, written from its prose; also says whether a floor bound."""
    ranks, free, left = {}, dict(scores), base_r * len(scores)
    while free:
        total = sum(free.values())
        raw = {n: s / total * left for n, s in free.items()}
        full = [n for n in free if math.floor(raw[n]) >= r_max]
        if not full:
            break
        for name in full:
            ranks[name] = r_max
            left -= r_max
            del free[name]
    if not free:
        return ranks, False, []
    rounded = {n: math.floor(x) for n, x in raw.items()}
    by_remainder = sorted(free, key=lambda n: -(raw[n] - rounded[n]))
    for name in by_remainder[: left - sum(rounded.values())]:
        rounded[name] += 1
    bound = any(x < r_min for x in raw.values())
    fractions = sorted(x - math.floor(x) for x in raw.values())
    return ranks | rounded, bound, fractions


@pytest.mark.parametrize("n_modules", [9, 36, 224])
@pytest.mark.parametrize("base_r", [8, 16])
def test_equals_the_papers_algorithm_where_it_is_sound(n_modules, base_r):
    """No floor binds, nothing is clamped, no fractions tie: the same ranks."""
    rng = random.Random(n_modules * base_r)
    compared = 0
    for _ in range(400):
        scores = named(rng.lognormvariate(0, 0.6) for _ in range(n_modules))
        theirs, bound, fractions = algorithm_1(scores, base_r, 1, 2 * base_r)
        if bound or any(b - a < 1e-5 for a, b in itertools.pairwise(fractions)):
            continue
        compared += 1
        assert paper_call(scores, base_r, 1) == theirs
    assert compared > 20


def test_the_budget_holds_where_the_published_code_exceeds_it():
    """Saturated modules give back what the floor takes (the published code: 22 and 9)."""
    first = paper_call({"a": 1000, "b": 10, "c": 1, "d": 1, "e": 1}, 4, 2)
    second = paper_call({"a": 1e8, "b": 0}, 4, 1)

    assert first == {"a": 8, "b": 6, "c": 2, "d": 2, "e": 2}
    assert second == {"a": 7, "b": 1}


def test_small_scores_are_not_clamped():
    """Scores around 1e-11 are shared like scores around 1 (the published code: 8, 8, 8)."""
    ranks = {"a": 9, "b": 1, "c": 14}

    assert paper_call({"a": 3e-11, "b": 1e-12, "c": 5e-11}, 8, 1) == ranks
    assert paper_call({"a": 3, "b": 0.1, "c": 5}, 8, 1) == ranks


def test_impossible_bounds_are_refused_with_the_feasible_interval():
    """The published code spends 8 of 16 here without a word."""
    with pytest.raises(InfeasibleBudget, match=r"16 ranks for 2 modules .* \[2, 8\]"):
        paper_call({"a": 1, "b": 1}, 8, 1, r_max=4)
    with pytest.raises(InfeasibleBudget, match=r"8 ranks for 4 modules .* \[32, 32\]"):
        paper_call({"a": 5, "b": 1, "c": 1, "d": 1}, 2, 8, r_max=8)


# --- hard numbers ------------------------------------------------------------------------


def test_scores_at_the_ends_of_the_float_range():
    """Beside the largest float the smallest one is like zero; on its own it takes all."""
    assert paper_call({"a": 1e300, "b": 5e-324, "c": 0.0}, 4, 1) == {"a": 8, "b": 2, "c": 2}
    assert paper_call({"a": 0.0, "b": 5e-324}, 4, 1) == {"a": 1, "b": 7}
    assert paper_call({"a": 1e308, "b": 1e308, "c": 1e308}, 4, 1) == dict.fromkeys("abc", 4)


def test_all_zero_scores_share_equally():
    """No information is no reason to fail."""
    assert paper_call(dict.fromkeys("abc", 0.0), 4, 1) == dict.fromkeys("abc", 4)


def test_ties_go_to_the_higher_score_then_to_the_first_name():
    """One rank is left: quotas 1.5 and 2.5 tie, and so do equal scores."""
    assert paper_call({"a": 3.0, "b": 5.0}, 2, 1, r_max=4) == {"a": 1, "b": 3}
    assert paper_call({"a": 3e-9, "b": 5e-9}, 2, 1, r_max=4) == {"a": 1, "b": 3}
    bounds = {"lowest": dict.fromkeys("ba", 1), "highest": dict.fromkeys("ba", 4)}
    assert allocate_ranks({"b": 1.0, "a": 1.0}, limit=3, **bounds) == {"a": 2, "b": 1}


@pytest.mark.parametrize("score", [math.nan, math.inf, -1.0])
def test_a_score_no_rule_can_share_by_is_refused_by_name(score):
    """NaN, infinite and negative scores name their module."""
    with pytest.raises(InvalidScore, match="'b'"):
        paper_call({"a": 1.0, "b": score}, 4, 1)
