"""Menus, ties and rules per type: what they bind, they bind in every rule and every control."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from fimlora.allocation import RULES, allocate, allocate_ranks
from fimlora.allocation.knapsack import best_steps
from fimlora.errors import InfeasibleBudget, InvalidOption
from fimlora.plan import Budget, RankPlan, TargetModule
from fimlora.scores import Scores
from support.allocation import cases, llama_like, named, scores_of, solve_by_gain, spectra_of

MODULES = llama_like(6)
COST = sum(m.cost for m in MODULES)
TYPES = ("q_proj", "v_proj", "down_proj")


def scored(modules=MODULES, seed=0):
    return Scores(modules, scores_of(modules, seed), spectra_of(modules, seed))


def patterns(plan):
    """Ranks of the plan and of its controls."""
    return [dict(plan.ranks), *map(dict, plan.controls.values())]


def of_type(kind):
    return [m for m in MODULES if m.name.endswith(kind)]


def price(plan, ranks, modules):
    costs = {m.name: 1 if plan.budget.unit == "rank" else m.cost for m in modules}
    return sum(costs[m.name] * ranks[m.name] for m in modules)


BUDGETS = [Budget("rank", 8), Budget("parameters", 8 * COST + 77)]


# Of plans by layers, which leave modules out, `test_layers` has what they keep to.
@pytest.fixture(params=[rule for rule in RULES if rule != "layers"])
def rule(request):
    return request.param


@pytest.fixture(params=BUDGETS, ids=lambda budget: budget.unit)
def budget(request):
    return request.param


def test_a_share_is_met_by_the_plan_and_by_every_control(rule, budget):
    """To the largest remainder: in ranks exactly, in parameters within the cheapest step."""
    shares = {"q_proj": 0.31, "v_proj": 0.22}
    plan = allocate(
        scored(),
        budget,
        rule=rule,
        r_min=1,
        per_type={t: {"share": s} for t, s in shares.items()},
    )

    rest = 1 - sum(shares.values())
    limits = {}
    for kind, share in [*shares.items(), ("down_proj", rest)]:
        members = of_type(kind)
        found = {price(plan, ranks, members) for ranks in patterns(plan)}
        if budget.unit == "rank":
            assert len(found) == 1
            assert abs(found.pop() - share * plan.limit) < 1
        else:
            most = members[0].cost
            grain = math.gcd(*(m.cost for m in MODULES))
            limits[kind] = share * plan.limit
            assert max(found) <= limits[kind] + grain
            assert min(found) > limits[kind] - grain - most
    if budget.unit == "rank":
        assert all(sum(ranks.values()) == plan.limit for ranks in patterns(plan))
    assert plan.unspent >= 0
    assert RankPlan.from_json(plan.to_json()) == plan


@given(st.lists(st.integers(1, 60), min_size=2, max_size=3), st.integers(18, 200))
def test_shares_are_rounded_by_largest_remainder_and_add_up(parts, limit):
    """Against the rounding of quotas one by one; each type's ranks are a plan of their own."""
    total = sum(parts) + (17 if len(parts) == 2 else 0)
    kinds = TYPES[: len(parts)]
    shares = {kind: part / total for kind, part in zip(kinds, parts, strict=True)}
    try:
        plan = allocate(
            scored(),
            limit / len(MODULES),
            r_min=1,
            r_max=200,
            per_type={kind: {"share": share} for kind, share in shares.items()},
        )
    except InfeasibleBudget:
        reject()

    limit, quotas = plan.limit, {k: share * plan.limit for k, share in shares.items()}
    if len(parts) == 2:
        quotas[TYPES[2]] = limit - sum(quotas.values())
    rounded = {kind: math.floor(quota + 1e-9) for kind, quota in quotas.items()}
    by_remainder = sorted(quotas, key=lambda k: rounded[k] - quotas[k])
    found = {k: sum(plan.ranks[m.name] for m in of_type(k)) for k in quotas}
    assert sum(found.values()) == limit
    assert all(0 <= found[k] - rounded[k] <= 1 for k in quotas)
    more = [k for k in quotas if found[k] > rounded[k]]
    least = min((quotas[k] - rounded[k] for k in more), default=1)
    assert all(quotas[k] - rounded[k] <= least + 1e-6 for k in by_remainder if k not in more)
    for kind, ranks in found.items():
        members = of_type(kind)
        alone = allocate_ranks(
            {m.name: plan.scores[m.name] for m in members},
            limit=ranks,
            lowest={m.name: 1 for m in members},
            highest={m.name: min(m.d_in, m.d_out) for m in members},
        )
        assert alone == {m.name: plan.ranks[m.name] for m in members}


def test_bounds_of_a_type_go_before_the_general_ones(rule, budget):
    """In the plan and in the controls; a floor above the general ceiling lifts it there."""
    per_type = {"q_proj": {"r_min": 18}, "v_proj": {"r_max": 3}, "down_proj": {"r_min": 2}}
    plan = allocate(scored(), budget, rule=rule, r_min=4, r_max=16, per_type=per_type)

    for ranks in patterns(plan):
        assert {ranks[m.name] for m in of_type("q_proj")} == {18}
        assert all(1 <= ranks[m.name] <= 3 for m in of_type("v_proj"))
        assert all(2 <= ranks[m.name] <= 16 for m in of_type("down_proj"))


def test_a_server_caps_every_ceiling(rule):
    """Also that of a type, and of the default."""
    plan = allocate(scored(), 8, rule=rule, max_lora_rank=9, per_type={"q_proj": {"r_max": 20}})

    assert plan.r_max == 9
    assert all(max(ranks.values()) <= 9 for ranks in patterns(plan))
    with pytest.raises(InvalidOption, match="r_min=10 is above max_lora_rank=9"):
        allocate(scored(), 8, rule=rule, r_min=10, max_lora_rank=9)
    with pytest.raises(InvalidOption, match=r"per_type\['q_proj'\]: r_min=10 is above"):
        allocate(scored(), 8, max_lora_rank=9, per_type={"q_proj": {"r_min": 10}})


@pytest.mark.parametrize("groups", ["type", "fused", "layer", [["q_proj", "v_proj"]]], ids=str)
def test_tied_modules_have_one_rank_everywhere(rule, budget, groups):
    """Whatever ties them."""
    plan = allocate(scored(), budget, rule=rule, r_min=1, groups=groups)

    tied = {
        "type": [[m.name for m in of_type(kind)] for kind in TYPES],
        "fused": [],  # q and v without k are packed as they are
        "layer": [[m.name for m in MODULES if m.layer == i] for i in range(6)],
    }.get(str(groups), [[m.name for m in [*of_type("q_proj"), *of_type("v_proj")]]])
    if groups == "fused":
        tied = [
            [m.name for m in MODULES if m.layer == i and "attn" in m.name] for i in range(6)
        ]
    for ranks in patterns(plan):
        assert all(len({ranks[name] for name in group}) == 1 for group in tied)


@pytest.mark.parametrize("menu", ["powers-of-two", "vllm", [3, 5, 9, 14]], ids=str)
def test_all_ranks_are_of_the_menu_and_nothing_open_still_fits(rule, budget, menu):
    """Never above the budget; what is left is reported, and below the cheapest open step."""
    plan = allocate(scored(), budget, rule=rule, rank_menu=menu)

    allowed = plan.constraints.rank_menu
    for ranks in patterns(plan):
        assert set(ranks.values()) <= set(allowed)
        left = plan.limit - price(plan, ranks, MODULES)
        assert left >= 0
        for module in MODULES:
            most = min(plan.r_max, module.d_in, module.d_out)
            steps = [r for r in allowed if ranks[module.name] < r <= most]
            more = {module.name: min(steps) - ranks[module.name]} if steps else {}
            assert not more or price(plan, {module.name: more[module.name]}, [module]) > left
    assert plan.unspent == plan.limit - price(plan, plan.ranks, MODULES)
    assert RankPlan.from_json(plan.to_json()) == plan


def test_default_bounds_make_room_for_the_menu():
    """Half and twice the mean rank, outwards to what the menu has."""
    plan = allocate(scored(), 12, rank_menu="powers-of-two")

    assert (plan.r_min, plan.r_max) == (4, 32)


# --- laws with a menu --------------------------------------------------------------------

TOP = 9
MENUS = st.sampled_from([(1, 2, 4, 8), (1, 3, 4, 9), (2, 3, 9)])
SCORE = st.one_of(st.sampled_from([0.0, 1e-300, 1.0]), st.floats(1e-60, 1e60))
VALUE = st.one_of(st.sampled_from([0.0, 1.0, 2.0]), st.floats(1e-3, 1e3))
SPECTRUM = st.lists(VALUE, min_size=TOP, max_size=TOP)


@pytest.fixture(params=["proportional", "spectral"], scope="module")
def solver(request):
    if request.param == "proportional":
        return allocate_ranks, SCORE, lambda value, factor: value * factor
    return solve_by_gain, SPECTRUM, lambda value, factor: [v * factor for v in value]


@given(st.data(), MENUS, st.sampled_from([None, 12]))
def test_order_and_unit_move_nothing(solver, data, menu, most_cost):
    """Shuffled modules, and values in another unit."""
    solve, value, scaled = solver
    values, options = data.draw(cases(value, most_cost=most_cost))
    rng = data.draw(st.randoms(use_true_random=False))
    try:
        ranks = solve(values, **options, rank_menu=menu)
    except InfeasibleBudget:
        reject()
    names = list(values)
    rng.shuffle(names)

    def shuffled(some):
        return {n: some[n] for n in names} if isinstance(some, dict) else some

    again = solve(
        {n: scaled(values[n], 2.0**-7) for n in names},
        **{key: shuffled(some) for key, some in options.items()},
        rank_menu=menu,
    )

    assert again == ranks


@given(st.data(), MENUS, st.integers(1, 9))
def test_what_is_greater_never_gets_less(solver, data, menu, cost):
    """At equal cost and bounds: a higher score, or larger gains throughout; equal gains tie."""
    solve, value, _ = solver
    values = named(data.draw(st.lists(value, min_size=2, max_size=7)))
    lowest = min(menu)
    limit = data.draw(st.integers(lowest * len(values), max(menu) * len(values)))
    ranks = solve(
        values,
        limit=limit * cost,
        lowest=dict.fromkeys(values, lowest),
        highest=dict.fromkeys(values, TOP),
        weights=dict.fromkeys(values, cost),
        rank_menu=menu,
    )

    for a, b in itertools.permutations(values, 2):
        one, other = values[a], values[b]
        if isinstance(one, list):
            one, other = sorted(one, reverse=True), sorted(other, reverse=True)
            greater = all(x > y for x, y in zip(one, other, strict=True))
        else:
            greater = one > other
        assert not greater or ranks[a] >= ranks[b]


def captured(spectra, ranks):
    return math.fsum(
        v**2 for n, values in spectra.items() for v in sorted(values, reverse=True)[: ranks[n]]
    )


@settings(max_examples=150)
@given(st.data(), MENUS, st.sampled_from([None, 12]))
def test_a_menu_of_spectra_is_filled_as_brute_force_fills_it(data, menu, most_cost):
    """No choice of allowed ranks within the limit captures more, at any costs."""
    spectra, options = data.draw(cases(SPECTRUM, max_size=4, most_cost=most_cost))
    try:
        ranks = solve_by_gain(spectra, **options, rank_menu=menu)
    except InfeasibleBudget:
        reject()

    weights = options.get("weights") or dict.fromkeys(spectra, 1)
    allowed = [
        [r for r in (0, *menu) if options["lowest"][n] <= r <= options["highest"][n]]
        for n in spectra
    ]
    best = max(
        captured(spectra, dict(zip(spectra, choice, strict=True)))
        for choice in itertools.product(*allowed)
        if sum(weights[n] * r for n, r in zip(spectra, choice, strict=True)) <= options["limit"]
    )
    assert sum(weights[n] * r for n, r in ranks.items()) <= options["limit"]
    assert captured(spectra, ranks) >= best * (1 - 1e-9)


def test_a_case_too_large_for_the_exact_choice_goes_by_gain_per_cost():
    """It says so by giving nothing, and the rule still fills the budget."""
    gains, prices = [np.array([4.0, 1.0])] * 3, [np.array([1, 2])] * 3

    assert best_steps(gains, prices, 5, most_work=3) is None
    found = best_steps(gains, prices, 5)
    assert sorted(found.tolist()) == [1, 1, 2]


# --- what cannot be ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        (
            {"per_type": {"q_proj": {"share": 0.9}}},
            InfeasibleBudget,
            r"a share of 0.9 is 130 of 144 ranks, .* \[24, 96\] .* from 0.166667 to 0.666666",
        ),
        (
            {"per_type": {"q_proj": {"share": 0.5}, "v_proj": {"share": 0.45}}},
            InfeasibleBudget,
            r"what per_type leaves to all other modules: a share of 0.05 is 7 of 144 ranks",
        ),
        (
            {"per_type": {t: {"share": 0.3} for t in TYPES}},
            InvalidOption,
            "a share for every module, and they add up to 0.9",
        ),
        (
            {"per_type": {t: {"share": 0.5} for t in TYPES}},
            InvalidOption,
            "add up to 1.5",
        ),
        (
            {"per_type": {"q_proj": {"share": 0.3}}, "groups": "layer"},
            InvalidOption,
            "shares of their own to 'all others', 'q_proj'",
        ),
        ({"per_type": {"q_proj": {"r_min": 0}}}, InvalidOption, "at least 1"),
        ({"rank_menu": [20, 30]}, InfeasibleBudget, "allowed are the ranks 20, 30"),
    ],
    ids=["much", "little", "short", "over", "across", "zero", "menu"],
)
def test_what_cannot_be_met_is_refused_by_name(options, error, said):
    """With the feasible interval where there is one."""
    with pytest.raises(error, match=said):
        allocate(scored(), 8, r_min=4, r_max=16, **options)


def test_only_spectra_may_leave_a_type_out():
    """Rank 0 means not targeted."""
    plan = allocate(
        scored(), 8, rule="spectral", per_type={"v_proj": {"r_min": 0, "r_max": 1}}, r_min=1
    )

    assert {plan.ranks[m.name] for m in of_type("v_proj")} <= {0, 1}


def test_a_share_of_what_no_row_reached_cannot_be_spent():
    """It is named; bounds of such a type mean nothing and are let be."""
    scores = Scores(MODULES, scores_of(MODULES), not_targeted={"a.0.gone": "no row reaches it"})

    with pytest.raises(InvalidOption, match=r"per_type\['gone'\] is to have a share"):
        allocate(scores, 8, per_type={"gone": {"share": 0.1}})
    assert allocate(scores, 8, per_type={"gone": {"r_min": 2}}).spent.ranks == 8 * len(MODULES)


def test_equal_ranks_for_a_module_smaller_than_its_floor():
    """Its full rank counts, also for a type."""
    modules = (*MODULES, TargetModule("score", 64, 3))
    plan = allocate(
        Scores(modules, scores_of(modules)), 8, per_type={"score": {"r_min": 5, "r_max": 9}}
    )

    assert plan.ranks["score"] == 3
