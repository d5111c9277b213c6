"""Allocation: the laws of the water-filling, the budgets, the controls."""

import itertools
import math
import pickle
import random
import re
import subprocess
import sys

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from fimlora.adapter.rank_map import render_text
from fimlora.allocation import allocate, allocate_ranks
from fimlora.errors import InfeasibleBudget, InvalidOption, InvalidScore
from fimlora.plan import Budget, RankPlan, TargetModule
from fimlora.scores import Scores

# Two test processes share two cores: time is no sign of a wrong result.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

ANY_SCORE = st.one_of(
    st.sampled_from([0.0, 5e-324, 1e-300, 1.0, 1e300]), st.floats(0, 1e300, allow_nan=False)
)
# Wide, but far enough from both ends of the float range to be scaled without loss.
PLAIN_SCORE = st.one_of(st.just(0.0), st.floats(1e-60, 1e60))


def named(scores):
    return {f"m{i}": score for i, score in enumerate(scores)}


def paper_call(scores, base_r, r_min, r_max=None):
    """Our solver behind the signature of the published code."""
    scores = {name: float(score) for name, score in scores.items()}
    return allocate_ranks(
        scores,
        limit=base_r * len(scores),
        lowest=dict.fromkeys(scores, r_min),
        highest=dict.fromkeys(scores, r_max or 2 * base_r),
    )


@st.composite
def cases(draw, scores=ANY_SCORE, max_size=12, top=9):
    """Scores with bounds per module and a feasible rank budget."""
    values = named(draw(st.lists(scores, min_size=1, max_size=max_size)))
    lowest = {n: draw(st.integers(0, 3)) for n in values}
    highest = {n: draw(st.integers(lowest[n], top)) for n in values}
    limit = draw(st.integers(sum(lowest.values()), sum(highest.values())))
    return values, {"limit": limit, "lowest": lowest, "highest": highest}


@st.composite
def costed_cases(draw, scores=ANY_SCORE):
    """The same with a cost per module and a parameter limit that is not too small."""
    values, options = draw(cases(scores=scores))
    weights = {n: draw(st.integers(1, 40)) for n in values}
    least = sum(weights[n] * r for n, r in options["lowest"].items())
    return values, options | {"weights": weights, "limit": draw(st.integers(least, 2000))}


# --- laws --------------------------------------------------------------------------------


@given(cases())
def test_a_rank_budget_is_met_exactly_inside_the_bounds(case):
    """Whatever the scores, the sum is exact and no module leaves its bounds."""
    scores, options = case

    ranks = allocate_ranks(scores, **options)

    assert sum(ranks.values()) == options["limit"]
    assert all(options["lowest"][n] <= r <= options["highest"][n] for n, r in ranks.items())


@given(costed_cases())
def test_a_parameter_budget_is_never_exceeded_and_no_open_step_still_fits(case):
    """What is left over is less than the cheapest step that is still open."""
    scores, options = case

    ranks = allocate_ranks(scores, **options)

    left = options["limit"] - sum(options["weights"][n] * r for n, r in ranks.items())
    steps = [options["weights"][n] for n, r in ranks.items() if r < options["highest"][n]]
    assert left >= 0
    assert all(left < step for step in steps)
    assert all(options["lowest"][n] <= r <= options["highest"][n] for n, r in ranks.items())


@given(st.one_of(cases(), costed_cases()), st.randoms(use_true_random=False))
def test_the_order_of_the_modules_is_irrelevant(case, rng):
    """Shuffled scores, bounds and weights give the same ranks."""
    scores, options = case
    names = list(scores)
    rng.shuffle(names)

    def shuffled(value):
        return {n: value[n] for n in names} if isinstance(value, dict) else value

    again = allocate_ranks(shuffled(scores), **{k: shuffled(v) for k, v in options.items()})

    assert again == allocate_ranks(scores, **options)


@given(
    st.one_of(cases(scores=PLAIN_SCORE), costed_cases(scores=PLAIN_SCORE)),
    st.sampled_from([2.0**-100, 0.5, 2.0, 2.0**70, 1e-9, 3.7e5]),
)
def test_the_unit_of_the_scores_is_irrelevant(case, factor):
    """Scores times any factor give the same ranks: loss scale and LoRA scale drop out."""
    scores, options = case

    scaled = allocate_ranks({n: s * factor for n, s in scores.items()}, **options)

    assert scaled == allocate_ranks(scores, **options)


@given(st.lists(ANY_SCORE, min_size=2, max_size=12), st.integers(1, 40), st.data())
def test_a_higher_score_never_gets_less(values, weight, data):
    """At equal cost and bounds, ranks are monotone in the scores."""
    scores = named(values)
    limit = data.draw(st.integers(2 * len(scores), 9 * len(scores)))
    weights = data.draw(st.sampled_from([None, dict.fromkeys(scores, weight)]))

    ranks = allocate_ranks(
        scores,
        limit=limit * (weight if weights else 1),
        lowest=dict.fromkeys(scores, 2),
        highest=dict.fromkeys(scores, 9),
        weights=weights,
    )

    for a, b in itertools.permutations(scores, 2):
        assert scores[a] <= scores[b] or ranks[a] >= ranks[b]


@given(costed_cases(), st.sampled_from([1, 2, 4]))
def test_every_rank_is_a_multiple(case, step):
    """With ``multiple_of`` the bounds, the limit and the multiples all hold, or it is refused."""
    scores, options = case
    try:
        ranks = allocate_ranks(scores, **options, multiple_of=step)
    except InfeasibleBudget:
        reject()

    assert all(r % step == 0 for r in ranks.values())
    assert all(options["lowest"][n] <= r <= options["highest"][n] for n, r in ranks.items())
    assert sum(options["weights"][n] * r for n, r in ranks.items()) <= options["limit"]


@given(st.lists(ANY_SCORE, min_size=6, max_size=12), st.integers(12, 48))
def test_tied_modules_get_one_rank(values, limit):
    """A group has one rank, and the total is missed by less than the largest group."""
    scores = named(values)
    groups = [("m0", "m1", "m2"), ("m4", "m3")]

    ranks = allocate_ranks(
        scores,
        limit=limit,
        lowest=dict.fromkeys(scores, 1),
        highest=dict.fromkeys(scores, 8),
        groups=groups,
    )

    assert all(len({ranks[n] for n in group}) == 1 for group in groups)
    assert 0 <= limit - sum(ranks.values()) < 3


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
@given(cases(scores=st.floats(1e-6, 1e3), max_size=5, top=5))
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
@given(costed_cases(scores=st.floats(1e-6, 1e3)))
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


@pytest.mark.parametrize("score", [None, "1.0", True, [1.0, 2.0]], ids=repr)
def test_a_score_that_is_no_number_is_refused_by_name(score):
    """Also a text that reads like a number: it came from somewhere it should not."""
    modules = llama_like(1)
    scores = scores_of(modules)

    with pytest.raises(InvalidScore, match=r"v_proj' is .* must be numbers"):
        allocate(Scores(modules, scores | {modules[1].name: score}))


# --- budgets and bounds ------------------------------------------------------------------


def llama_like(layers=4):
    """Modules of unequal cost."""
    return tuple(
        TargetModule(f"model.layers.{layer}.{kind}", d_in, d_out)
        for layer in range(layers)
        for kind, d_in, d_out in [
            ("self_attn.q_proj", 64, 64),
            ("self_attn.v_proj", 64, 16),
            ("mlp.down_proj", 176, 64),
        ]
    )


def scores_of(modules, seed=0):
    rng = random.Random(seed)
    return {m.name: rng.lognormvariate(0, 2) for m in modules}


def run_alone(code):
    """The lines that a process of its own prints."""
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


COST = sum(m.cost for m in llama_like())


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
def test_every_budget_unit_becomes_ranks_or_parameters(budget, limit):
    """The plan, and both controls, spend the same converted limit and never more."""
    modules = llama_like()

    plan = allocate(Scores(modules, scores_of(modules), base_parameters=100 * COST), budget)

    assert plan.limit == limit
    for ranks in (plan.ranks, *plan.controls.values()):
        spending = plan.spending_of(ranks)
        if budget.unit == "rank":
            assert spending.ranks == limit
        else:
            assert spending.parameters <= limit
    assert plan.limit - plan.spent.parameters < 80 or budget.unit == "rank"


def test_bounds_default_to_half_and_twice_the_mean_rank():
    """Also for other units, where the mean rank is the largest uniform rank that fits."""
    modules = llama_like()
    scores = scores_of(modules)

    by_rank = allocate(Scores(modules, scores), 8)
    by_parameters = allocate(Scores(modules, scores), Budget("parameters", 9 * COST - 1))
    small = allocate(Scores(modules, scores), 1)

    assert (by_rank.r_min, by_rank.r_max) == (4, 16)
    assert (by_parameters.r_min, by_parameters.r_max) == (4, 16)
    assert (small.r_min, small.r_max) == (1, 2)


def test_one_given_bound_moves_the_default_of_the_other_out_of_its_way():
    """A floor above twice the mean, or a ceiling below half of it, is the caller's word."""
    modules = llama_like()

    with pytest.raises(InfeasibleBudget, match=r"with r_min=9, default r_max=9.*\[108, 108\]"):
        allocate(Scores(modules, scores_of(modules)), 4, r_min=9)
    with pytest.raises(InfeasibleBudget, match=r"default r_min=3, r_max=3.*\[36, 36\]"):
        allocate(Scores(modules, scores_of(modules)), 8, r_max=3)


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
def test_an_infeasible_budget_names_the_interval_in_its_own_unit(budget, said):
    """So that the reader can ask again without a calculation."""
    modules = llama_like()

    with pytest.raises(InfeasibleBudget, match=rf"{said}$") as caught:
        allocate(
            Scores(modules, scores_of(modules), base_parameters=100 * COST),
            budget,
            r_min=4,
            r_max=8,
        )

    factor = 12 if budget.unit == "rank" else COST
    assert caught.value.interval == (4 * factor, 8 * factor)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.interval) == (str(caught.value), caught.value.interval)


@pytest.mark.parametrize("least", [True, False])
def test_the_ends_of_an_odd_interval_are_feasible(least):
    """Seven modules and one of rank 3 at most: ends that are rounded are rounded inwards."""
    modules = (*llama_like(2), TargetModule("score", 64, 3))
    with pytest.raises(InfeasibleBudget) as caught:
        allocate(Scores(modules, scores_of(modules)), 1, r_min=5, r_max=17)
    low, high = re.search(r"rank from ([\d.]+) to ([\d.]+)$", str(caught.value)).groups()

    plan = allocate(
        Scores(modules, scores_of(modules)), float(low if least else high), r_min=5, r_max=17
    )

    assert (low, high) == ("4.71429", "14.7142")
    assert plan.spent.ranks == (33 if least else 102)
    assert caught.value.interval == (33, 103)


def test_no_rank_exceeds_the_modules_own_size():
    """A rank above min(d_in, d_out) buys nothing, whatever r_min says."""
    modules = (*llama_like(), TargetModule("score", 64, 3))
    scores = scores_of(modules) | {"score": 1e9}

    plan = allocate(Scores(modules, scores), 8)

    assert plan.ranks["score"] == 3
    assert plan.spent.ranks == 8 * 13
    assert plan.controls["uniform"]["score"] == 3


def test_a_parameter_budget_above_every_ceiling_leaves_a_rest():
    """All modules are at r_max and the plan shows that the limit is not reached."""
    modules = llama_like()

    plan = allocate(
        Scores(modules, scores_of(modules)), Budget("parameters", 40 * COST), r_max=8
    )

    assert set(plan.ranks.values()) == {8}
    assert plan.spent.parameters == 8 * COST < plan.limit


def test_a_fraction_needs_the_size_of_the_model():
    """Without it there is nothing to take the fraction of."""
    modules = llama_like()

    with pytest.raises(InvalidOption, match="base_parameters"):
        allocate(Scores(modules, scores_of(modules)), Budget("fraction", 0.01))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r_min": 0}, "r_min=0"),
        ({"r_max": -1}, "r_max=-1"),
        ({"r_min": 9, "r_max": 4}, "r_min=9 is above r_max=4"),
        ({"scale": 0}, "scale=0"),
        ({"multiple_of": 0}, "multiple_of=0"),
        ({"rule": "greedy"}, "'greedy' is unknown"),
        ({"groups": [("nowhere",)]}, "nowhere"),
        ({"budget": 0}, "rank=0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    """Each error says what was given."""
    modules = llama_like()

    with pytest.raises(InvalidOption, match=message):
        allocate(Scores(modules, scores_of(modules)), **options)


def test_scores_and_modules_must_fit():
    """Doubled, missing and unknown modules are named."""
    modules = llama_like(1)
    scores = scores_of(modules)

    with pytest.raises(InvalidOption, match="empty"):
        allocate(Scores(()))
    with pytest.raises(InvalidOption, match=r"q_proj' twice"):
        allocate(Scores((*modules, modules[0]), scores))
    with pytest.raises(InvalidOption, match="extra"):
        allocate(Scores(modules, scores | {"extra": 1.0}))


NO_SCORES = """
from fimlora import Statistics, allocate
given = [{"a": 1.0}, [1.0], None, object.__new__(Statistics)]
for scores in given:
    try:
        allocate(scores, 8)
    except ValueError as error:
        print(type(error).__name__, error)
"""


def test_what_is_no_scores_is_refused_with_the_next_step():
    """In a process of its own, where no checked annotation is faster."""
    ran = run_alone(NO_SCORES)

    assert ran == [
        f"InvalidOption allocate takes Scores, not {name}; give it what "
        "fimlora.score(statistics) returns, or wrap numbers of your own: "
        "Scores(modules=..., by_module=...)"
        for name in ("dict", "list", "NoneType", "Statistics")
    ]


@pytest.mark.parametrize(
    ("options", "unspent"),
    [
        ({"budget": 9, "multiple_of": 8, "r_min": 8, "r_max": 16}, 4),
        ({"budget": 8, "multiple_of": 8}, 0),
        ({"budget": 8.5}, 0),
        ({"budget": Budget("parameters", 9 * COST + 5), "r_min": 9, "r_max": 9}, 5),
    ],
    ids=lambda value: "" if isinstance(value, int) else str(value),
)
def test_what_cannot_be_spent_is_reported(options, unspent):
    """In the unit of the limit: 12 modules in multiples of 8 miss 108 ranks by 4."""
    modules = llama_like()

    plan = allocate(Scores(modules, scores_of(modules)), **options)

    assert plan.unspent == unspent
    assert plan.to_json()["budget"]["unspent"] == unspent
    assert RankPlan.from_json(plan.to_json()) == plan
    if plan.budget.unit == "rank":
        assert plan.spent.ranks + unspent == plan.limit
        assert (f"{unspent} ranks unspent" in render_text(plan)) == bool(unspent)


def test_tied_modules_report_what_they_miss():
    """Twelve modules in three groups of four: 50 ranks are two more than they can add up to."""
    modules = llama_like()
    names = [m.name for m in modules]

    plan = allocate(
        Scores(modules, scores_of(modules)),
        50 / 12,
        groups=[names[i::3] for i in range(3)],
        r_min=1,
    )

    assert (plan.limit, plan.spent.ranks, plan.unspent) == (50, 48, 2)


# --- controls ----------------------------------------------------------------------------


def test_the_uniform_control_is_the_mean_rank():
    """Exactly the mean rank for rank budgets, else the largest common rank that fits."""
    modules = llama_like()
    scores = scores_of(modules)

    by_rank = allocate(Scores(modules, scores), 8)
    by_parameters = allocate(Scores(modules, scores), Budget("parameters", 9 * COST - 1))

    assert set(by_rank.controls["uniform"].values()) == {8}
    assert set(by_parameters.controls["uniform"].values()) == {8}


def test_the_random_control_depends_on_seed_and_names_only():
    """Another seed is another plan; another order of modules or other scores are not."""
    modules = llama_like()

    def control(order, *, seed, scores_seed=0):
        plan = allocate(Scores(order, scores_of(modules, scores_seed)), 8, seed=seed)
        return plan.controls["random"]

    assert control(modules, seed=1) == control(modules[::-1], seed=1, scores_seed=5)
    assert control(modules, seed=1) != control(modules, seed=2)
    assert len(set(control(modules, seed=1).values())) > 1


@pytest.mark.parametrize("rule", ["uniform", "random"])
def test_a_control_can_be_the_plan(rule):
    """As a rule it gives the ranks that every plan carries as a control."""
    modules = llama_like()

    plan = allocate(Scores(modules, scores_of(modules)), 8, rule=rule, seed=3)

    assert plan.rule == rule
    assert plan.ranks == plan.controls[rule]
    assert plan.scores == scores_of(modules)


# --- size and weight of the code ---------------------------------------------------------


MANY = """
import random, sys
from fimlora.allocation import allocate
from fimlora.plan import TargetModule
from fimlora.scores import Scores
modules = [TargetModule(f"experts.{i}.up", 512, 256 + i % 7) for i in range(100_000)]
rng = random.Random(0)
plan = allocate(Scores(modules, {m.name: rng.lognormvariate(0, 2) for m in modules}), 8)
assert plan.spent.ranks == 800_000
assert len(plan.ranks) == 100_000
assert all(plan.r_min <= r <= plan.r_max for r in plan.ranks.values())
print("torch" in sys.modules)
"""


@pytest.mark.slow
def test_a_hundred_thousand_modules_without_torch():
    """The laws hold at a size no model has; benchmarks/allocate.py has the time.

    In a process of its own: a service without the engine's extras solves plans anew.
    """
    assert run_alone(MANY) == ["False"]
