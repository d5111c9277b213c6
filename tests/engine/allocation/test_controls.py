"""Controls spend what a plan spends, whatever it gives ranks to, and look at no score."""

import itertools
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, reject
from hypothesis import strategies as st

from fimlora.allocation import allocate, allocate_ranks
from fimlora.allocation.controls import RANDOM, check_spending, control_ranks, spread_out
from fimlora.allocation.units import gather_units
from fimlora.errors import InfeasibleBudget, UnequalControls
from fimlora.plan import Budget
from fimlora.scores import Scores
from support.allocation import COST, cases, llama_like, scores_of

SCORE = st.one_of(st.sampled_from([0.0, 1e-300, 1.0]), st.floats(0, 1e6))


@st.composite
def any_case(draw, menus=((), (1, 2, 4, 8), (1, 3, 4, 9))):
    """Modules in ranks or at unequal costs, in multiples, tied or alone, and a limit for them."""
    scores, options = draw(cases(SCORE, most_cost=draw(st.sampled_from([None, 40]))))
    names = sorted(scores)
    tied = draw(st.integers(0, len(names)))
    groups = [names[: tied // 2], names[tied // 2 : tied]]
    menu = draw(st.sampled_from(menus))
    step = 1 if menu else draw(st.sampled_from([1, 1, 2, 4]))
    options |= {"groups": groups, "multiple_of": step, "rank_menu": menu}
    return scores, options


def units_of(scores, options):
    """The units and the limit, or else no case."""
    bounds = {key: value for key, value in options.items() if key != "limit"}
    try:
        units = gather_units(scores, **bounds)
        units.affordable(options["limit"])
    except InfeasibleBudget:
        reject()
    return units, options["limit"]


def left_of(ranks, limit, options):
    weights = options.get("weights") or dict.fromkeys(ranks, 1)
    return limit - sum(weights[n] * r for n, r in ranks.items())


def open_steps(ranks, options):
    """What one more step costs, of every group and single module that may have one."""
    groups = [tuple(g) for g in options["groups"] if g]
    alone = [(n,) for n in ranks if not any(n in g for g in groups)]
    weights = options.get("weights") or dict.fromkeys(ranks, 1)
    return {
        names: (after - ranks[names[0]]) * sum(weights[n] for n in names)
        for names in [*groups, *alone]
        if (after := next_rank(ranks[names[0]], options))
        and all(after <= options["highest"][n] for n in names)
    }


def next_rank(rank, options):
    """The next rank that is allowed at all, if there is one."""
    if not options["rank_menu"]:
        return rank + options["multiple_of"]
    return min((other for other in options["rank_menu"] if other > rank), default=None)


@given(any_case(), st.integers(0, 99))
def test_no_control_leaves_what_a_step_would_cost(case, seed):
    """As of the plan: so no two differ by more than one step; bounds, multiples and ties hold."""
    scores, options = case
    units, limit = units_of(scores, options)
    controls = control_ranks(units, scores, limit, seed=seed)
    plan = allocate_ranks(scores, **options)

    assert controls.keys() == {"uniform", *RANDOM}
    for ranks in (plan, *controls.values()):
        left = left_of(ranks, limit, options)
        assert left >= 0
        assert all(left < step for step in open_steps(ranks, options).values())
        assert all(options["lowest"][n] <= r <= options["highest"][n] for n, r in ranks.items())
        assert all(r % options["multiple_of"] == 0 for r in ranks.values())
        assert not options["rank_menu"] or set(ranks.values()) <= {0, *options["rank_menu"]}
        assert all(len({ranks[n] for n in g}) <= 1 for g in options["groups"])
    check_spending(units, limit, {"plan": plan, **controls})


@given(any_case(menus=[()]))
def test_uniform_has_two_neighbouring_ranks_as_far_as_costs_allow(case):
    """A module is two steps ahead only of what is at its ceiling, or too dear for the rest.

    One that its floor lifts above another is ahead by that, and counts from there.
    """
    scores, options = case
    units, limit = units_of(scores, options)
    ranks = control_ranks(units, scores, limit, seed=0)["uniform"]
    step, left, still_open = (
        options["multiple_of"],
        left_of(ranks, limit, options),
        open_steps(ranks, options),
    )
    weights = options.get("weights") or dict.fromkeys(ranks, 1)

    for ahead, behind in itertools.product(ranks, still_open):
        group = next((g for g in options["groups"] if ahead in g), [ahead])
        lowest = step * -(-max(options["lowest"][n] for n in group) // step)
        if ranks[ahead] >= ranks[behind[0]] + 2 * step and lowest <= ranks[behind[0]]:
            taken = step * sum(weights[n] for n in group)
            assert still_open[behind] > left + taken


@given(any_case(), st.randoms(use_true_random=False))
@example(
    (
        {"m0": 0.0, "m1": 0.0},
        {"limit": 1, "lowest": {"m0": 0, "m1": 0}, "highest": {"m0": 1, "m1": 1},
         "groups": [["m1"]], "multiple_of": 1, "rank_menu": ()},
    ),
    random.Random(1),
)  # fmt: skip
def test_no_order_of_modules_moves_a_control(case, rng):
    """Names decide, not where a module stands in the list."""
    scores, options = case
    units, limit = units_of(scores, options)
    names = list(scores)
    rng.shuffle(names)
    mapped = ("lowest", "highest", "weights")
    shuffled = {
        key: {n: value[n] for n in names} if key in mapped else value
        for key, value in options.items()
    }
    again, _ = units_of(dict.fromkeys(names, 1.0), shuffled)

    assert control_ranks(again, names, limit, seed=3) == control_ranks(
        units, scores, limit, seed=3
    )


@pytest.mark.parametrize(("layers", "kinds"), [(32, 7), (12, 6), (4, 3), (11, 5)])
def test_the_additional_rank_of_uniform_is_spread_over_depth_and_kinds(layers, kinds):
    """However many modules have it: their share is the same in each kind and each third."""
    names = [f"model.layers.{i}.w{k}" for i in range(layers) for k in range(kinds)]
    bounds = {"lowest": dict.fromkeys(names, 1), "highest": dict.fromkeys(names, 9)}
    order = spread_out(gather_units(names, **bounds)).ties.tolist()
    third = layers // 3

    for n in range(len(names) + 1):
        by_kind = Counter(row % kinds for row in order[:n])
        by_third = Counter(row // kinds // third for row in order[:n])
        share = n / len(names)
        assert all(abs(by_kind[k] - share * layers) <= 1 for k in range(kinds))
        assert all(abs(by_third[t] - share * third * kinds) <= kinds / 2 + 1 for t in range(3))
    assert sorted(order) == list(range(len(names)))


def test_depth_is_a_number_and_not_a_text():
    """Block 10 is deeper than block 2, though its name comes first in the alphabet."""
    names = [f"h.{i}.mlp" for i in range(12)]
    bounds = {"lowest": dict.fromkeys(names, 1), "highest": dict.fromkeys(names, 9)}

    first, second, third = spread_out(gather_units(names, **bounds)).ties.tolist()[:3]

    assert (first, second, third) == (0, 5, 10)


def test_the_random_patterns_differ_and_only_the_first_is_the_rule():
    """Five draws from one seed, and the names that a rank map has them by."""
    scores = Scores(llama_like(), scores_of(llama_like()))

    plan = allocate(scores, 8, rule="random", seed=4)

    assert RANDOM == ("random", "random-2", "random-3", "random-4", "random-5")
    assert plan.ranks == plan.controls["random"]
    assert len({tuple(plan.controls[name].values()) for name in RANDOM}) == len(RANDOM)


@pytest.mark.parametrize("rule", ["proportional", "uniform", "random"])
@pytest.mark.parametrize("rest", [0, 5, 131, COST - 1])
def test_at_parameters_uniform_spends_the_rest_on_one_rank_more(rule, rest):
    """So that it spends what the plan spends, within the cheapest step."""
    budget = Budget("parameters", 8 * COST + rest)

    plan = allocate(Scores(llama_like(), scores_of(llama_like())), budget, rule=rule)

    cheapest = min(m.cost for m in llama_like())
    spent = [plan.spending_of(r).parameters for r in (plan.ranks, *plan.controls.values())]
    assert max(spent) - min(spent) < cheapest
    assert set(plan.controls["uniform"].values()) <= {8, 9}


@pytest.mark.parametrize(("change", "left"), [(-1, 80), (1, -80)])
def test_a_pattern_that_spends_otherwise_is_an_error(change, left):
    """It is named and not written; spending too much is as wrong as too little."""
    modules = llama_like()
    costs = {m.name: m.cost for m in modules}
    units = gather_units(
        costs,
        lowest=dict.fromkeys(costs, 1),
        highest=dict.fromkeys(costs, 16),
        weights=costs,
    )
    even = dict.fromkeys(costs, 8)
    name = modules[1].name

    check_spending(units, 8 * COST, {"uniform": even})
    with pytest.raises(UnequalControls, match=f"'odd' leaves {left} of {8 * COST} parameters"):
        check_spending(units, 8 * COST, {"uniform": even, "odd": even | {name: 8 + change}})


def test_ranks_convert_to_steps_and_back():
    """Of groups and single modules, in multiples."""
    names = ["a", "b", "c", "d"]
    units = gather_units(
        names,
        lowest=dict.fromkeys(names, 0),
        highest=dict.fromkeys(names, 16),
        multiple_of=4,
        groups=[("d", "b")],
    )

    steps = units.steps({"a": 4, "b": 12, "c": 16, "d": 12})

    assert np.array_equal(steps, [3, 1, 4])
    assert units.named(steps, names) == {"a": 4, "b": 12, "c": 16, "d": 12}
