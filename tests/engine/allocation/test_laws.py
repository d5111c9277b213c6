"""The laws of allocation: of both solvers for any values and bounds, and of every rule."""

import itertools
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from fimlora.allocation import RULES, allocate, allocate_ranks
from fimlora.errors import InfeasibleBudget
from fimlora.plan import Budget
from fimlora.scores import Scores
from support.allocation import (
    COST,
    cases,
    llama_like,
    named,
    scores_of,
    solve_by_gain,
    spectra_of,
)

TOP = 9
COST_OF_A_RANK = 40  # at most
ANY_SCORE = st.one_of(
    st.sampled_from([0.0, 5e-324, 1e-300, 1.0, 1e300]), st.floats(0, 1e300, allow_nan=False)
)
# Wide, but far enough from both ends of the float range to be scaled without loss.
PLAIN_SCORE = st.one_of(st.just(0.0), st.floats(1e-60, 1e60))
VALUE = st.one_of(st.sampled_from([0.0, 1e-160, 1.0, 2.0]), st.floats(1e-6, 1e3))
SPECTRUM = st.lists(VALUE, min_size=TOP, max_size=TOP)


@dataclass(frozen=True)
class Solver:
    """A solver, and what its laws are about.

    Attributes:
        solve: Ranks from values of the modules.
        value: Any value of a module.
        plain: Any that can be scaled without loss.
        factors: By what it may be scaled.
        scaled: A value in another unit.
        shuffled: The same value in another order.
        rivals: Values of which some are greater than others, also in the last bits.
        is_greater: Whether one value is to get no less than another.
    """

    solve: Callable[..., dict[str, int]]
    value: st.SearchStrategy[Any]
    plain: st.SearchStrategy[Any]
    factors: tuple[float, ...]
    scaled: Callable[[Any, float], Any]
    shuffled: Callable[[Any, Any], Any]
    rivals: st.SearchStrategy[list[Any]]
    is_greater: Callable[[Any, Any], bool]


@st.composite
def rival_spectra(draw):
    """Also where the first values tie."""
    values = sorted(draw(SPECTRUM), reverse=True)
    factor = st.sampled_from([1.0, 1 + 1e-13, 2.0])
    rivals = [sorted((v * draw(factor) for v in values), reverse=True) for _ in range(2)]
    return [*rivals, sorted(draw(SPECTRUM), reverse=True)]


def dominates(left, right):
    return left != right and all(x >= y for x, y in zip(left, right, strict=True))


SOLVERS = {
    "proportional": Solver(
        allocate_ranks,
        ANY_SCORE,
        PLAIN_SCORE,
        (2.0**-100, 0.5, 2.0, 2.0**70, 1e-9, 3.7e5),
        lambda score, factor: score * factor,
        lambda score, rng: score,
        st.lists(ANY_SCORE, min_size=2, max_size=12),
        lambda left, right: left > right,
    ),
    "spectral": Solver(
        solve_by_gain,
        SPECTRUM,
        SPECTRUM,
        (2.0**-60, 0.5, 1e-9, 3.7e5),
        lambda values, factor: [value * factor for value in values],
        lambda values, rng: rng.sample(values, len(values)),
        rival_spectra(),
        dominates,
    ),
}


@pytest.fixture(params=sorted(SOLVERS), scope="module")
def solver(request):
    return SOLVERS[request.param]


def in_bounds(ranks, options):
    return all(options["lowest"][n] <= r <= options["highest"][n] for n, r in ranks.items())


def cost_of(ranks, options):
    return sum(options["weights"][n] * r for n, r in ranks.items())


# --- of the solvers ----------------------------------------------------------------------


@given(st.data())
def test_a_rank_budget_is_met_exactly_inside_the_bounds(solver, data):
    """Whatever the values, the sum is exact and no module leaves its bounds."""
    values, options = data.draw(cases(solver.value))

    ranks = solver.solve(values, **options)

    assert sum(ranks.values()) == options["limit"]
    assert in_bounds(ranks, options)


@given(st.data())
def test_a_parameter_budget_is_never_exceeded_and_no_open_step_still_fits(solver, data):
    """What is left over is less than the cheapest step that is still open."""
    values, options = data.draw(cases(solver.value, most_cost=COST_OF_A_RANK))

    ranks = solver.solve(values, **options)

    left = options["limit"] - cost_of(ranks, options)
    steps = [options["weights"][n] for n, r in ranks.items() if r < options["highest"][n]]
    assert left >= 0
    assert all(left < step for step in steps)
    assert in_bounds(ranks, options)


@given(st.data(), st.sampled_from([None, COST_OF_A_RANK]), st.randoms(use_true_random=False))
def test_no_order_matters(solver, data, most_cost, rng):
    """Shuffled modules, bounds and weights give the same ranks, and so do shuffled spectra."""
    values, options = data.draw(cases(solver.value, most_cost=most_cost))
    names = list(values)
    rng.shuffle(names)

    def shuffled(value):
        return {n: value[n] for n in names} if isinstance(value, dict) else value

    other = {n: solver.shuffled(values[n], rng) for n in names}
    again = solver.solve(other, **{k: shuffled(v) for k, v in options.items()})

    assert again == solver.solve(values, **options)


@given(st.data(), st.sampled_from([None, COST_OF_A_RANK]))
def test_the_unit_of_the_values_is_irrelevant(solver, data, most_cost):
    """Values times any factor give the same ranks: loss scale and LoRA scale drop out."""
    values, options = data.draw(cases(solver.plain, most_cost=most_cost))
    factor = data.draw(st.sampled_from(solver.factors))

    scaled = solver.solve({n: solver.scaled(v, factor) for n, v in values.items()}, **options)

    assert scaled == solver.solve(values, **options)


@given(st.data(), st.sampled_from([0, 2]), st.integers(1, COST_OF_A_RANK))
def test_what_is_greater_never_gets_less(solver, data, floor, cost):
    """At equal cost and bounds, ranks are monotone: in scores, or in all gains together."""
    values = named(data.draw(solver.rivals))
    limit = data.draw(st.integers(floor * len(values), TOP * len(values)))
    weights = data.draw(st.sampled_from([None, dict.fromkeys(values, cost)]))

    ranks = solver.solve(
        values,
        limit=limit * (cost if weights else 1),
        lowest=dict.fromkeys(values, floor),
        highest=dict.fromkeys(values, TOP),
        weights=weights,
    )

    for a, b in itertools.permutations(values, 2):
        assert not solver.is_greater(values[a], values[b]) or ranks[a] >= ranks[b]


@given(st.data(), st.sampled_from([1, 2, 4]))
def test_every_rank_is_a_multiple(solver, data, step):
    """With ``multiple_of`` the bounds, the limit and the multiples all hold, or it is refused."""
    values, options = data.draw(cases(solver.value, most_cost=COST_OF_A_RANK))
    try:
        ranks = solver.solve(values, **options, multiple_of=step)
    except InfeasibleBudget:
        reject()

    assert all(r % step == 0 for r in ranks.values())
    assert in_bounds(ranks, options)
    assert cost_of(ranks, options) <= options["limit"]


@given(st.data())
def test_a_group_has_one_rank(solver, data):
    """And the total is missed by less than the largest group."""
    values = named(data.draw(st.lists(solver.value, min_size=6, max_size=12)))
    limit = data.draw(st.integers(12, 48))
    groups = [("m0", "m1", "m2"), ("m4", "m3")]

    ranks = solver.solve(
        values,
        limit=limit,
        lowest=dict.fromkeys(values, 1),
        highest=dict.fromkeys(values, 8),
        groups=groups,
    )

    assert all(len({ranks[n] for n in group}) == 1 for group in groups)
    assert 0 <= limit - sum(ranks.values()) < 3


@given(st.data(), st.sampled_from([None, COST_OF_A_RANK]))
def test_bounds_that_cannot_meet_the_limit_name_the_interval(solver, data, most_cost):
    """One below the least that they permit, and for ranks one above the most."""
    values, options = data.draw(cases(solver.value, most_cost=most_cost))
    weights = options.get("weights") or dict.fromkeys(values, 1)
    ends = [sum(weights[n] * r for n, r in options[b].items()) for b in ("lowest", "highest")]
    for limit in [ends[0] - 1, *([] if most_cost else [ends[1] + 1])]:
        with pytest.raises(InfeasibleBudget) as caught:
            solver.solve(values, **options | {"limit": limit})

        assert f"[{ends[0]}, {ends[1]}]" in str(caught.value)
        assert caught.value.interval == tuple(ends)


# --- of the rules ------------------------------------------------------------------------


@pytest.fixture(params=RULES)
def rule(request):
    return request.param


def scored(modules):
    """All that any rule goes by, of a model a hundred times the size of a rank for each."""
    return Scores(
        modules,
        scores_of(modules),
        spectra_of(modules),
        base_parameters=100 * COST,
    )


@pytest.mark.parametrize(
    ("budget", "limit"),
    [
        (Budget("rank", 8), 96),
        (Budget("rank", 7.25), 87),
        (Budget("parameters", 9 * COST + 5), 9 * COST + 5),
        (Budget("fraction", 0.29), 29 * COST),
        (Budget("bytes", 9 * 4 * COST + 7), 9 * COST + 1),
        (Budget("bytes", 9 * 2 * COST, bytes_per_parameter=2), 9 * COST),
    ],
    ids=lambda value: f"{value.unit}-{value.value}" if isinstance(value, Budget) else "",
)
def test_a_budget_in_any_unit_is_met_inside_the_bounds(rule, budget, limit):
    """Ranks exactly, all others but for less than a step; all controls spend the same."""
    plan = allocate(scored(llama_like()), budget, rule=rule)

    assert plan.limit == limit
    for name, ranks in {rule: plan.ranks, **plan.controls}.items():
        layers = {m.block for m in plan.modules if ranks[m.name]}  # of the others has none any
        reached = [m for m in plan.modules if "layers" not in name or m.block in layers]
        assert all(plan.r_min <= ranks[m.name] <= plan.r_max for m in reached)
        assert all(ranks[m.name] <= min(m.d_in, m.d_out) for m in plan.modules)
        spending = plan.spending_of(ranks)
        if budget.unit == "rank":
            assert spending.ranks == limit
            continue
        most = {m.name: min(plan.r_max, m.d_in, m.d_out) for m in plan.modules}
        steps = [m.cost for m in reached if ranks[m.name] < most[m.name]]
        room = sum(m.cost * most[m.name] for m in plan.modules if plan.ranks[m.name])
        spendable = min(limit, room) if rule == "layers" else limit
        assert 0 <= spendable - spending.parameters < min(steps, default=1)


@pytest.mark.parametrize("budget", [8, Budget("parameters", 9 * COST + 5)], ids=str)
def test_a_rule_is_deterministic_and_blind_to_order_and_unit(rule, budget):
    """The same call, the modules backwards, and values in another unit."""
    scores = scored(llama_like())
    backwards = replace(scores, modules=scores.modules[::-1])
    scaled = replace(
        scores,
        by_module={n: 1e-9 * score for n, score in scores.by_module.items()},
        spectra={n: [1e-9 * v for v in values] for n, values in scores.spectra.items()},
    )

    once, *others = (
        allocate(some, budget, rule=rule).ranks for some in (scores, scores, backwards, scaled)
    )

    assert others == [once] * 3


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (Budget("rank", 3), "rank from 4 to 8"),
        (Budget("parameters", 99), f"parameters from {4 * COST} to {8 * COST}"),
        (Budget("bytes", 99), f"bytes from {16 * COST} to {32 * COST}"),
        (Budget("bytes", 99, 2), f"bytes from {8 * COST} to {16 * COST}"),
        (Budget("fraction", 0.001), "fraction from 0.04 to 0.08"),
    ],
    ids=lambda value: value.unit if isinstance(value, Budget) else "",
)
def test_an_infeasible_budget_names_the_interval_in_its_own_unit(rule, budget, said):
    """So that the reader can ask again without a calculation; layers that are all chosen, too."""
    every = {"n_layers": 4} if rule == "layers" else {}
    with pytest.raises(InfeasibleBudget, match=rf"{said}$") as caught:
        allocate(scored(llama_like()), budget, rule=rule, r_min=4, r_max=8, **every)

    factor = 12 if budget.unit == "rank" else COST
    assert caught.value.interval == (4 * factor, 8 * factor)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.interval) == (str(caught.value), caught.value.interval)
