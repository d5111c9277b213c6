"""From scores and a budget to a plan: bounds, options, what is left, the controls."""

import re
import subprocess
import sys

import pytest

from fimlora.adapter.rank_map import render_text
from fimlora.allocation import allocate
from fimlora.errors import InfeasibleBudget, InvalidOption, InvalidScore
from fimlora.plan import Budget, RankPlan, TargetModule
from fimlora.scores import Scores
from support.allocation import COST, llama_like, scores_of


@pytest.mark.parametrize("score", [None, "1.0", True, [1.0, 2.0]], ids=repr)
def test_a_score_that_is_no_number_is_refused_by_name(score):
    """Also a text that reads like a number: it came from somewhere it should not."""
    modules = llama_like(1)
    scores = scores_of(modules)

    with pytest.raises(InvalidScore, match=r"v_proj' is .* must be numbers"):
        allocate(Scores(modules, scores | {modules[1].name: score}))


# --- budgets and bounds ------------------------------------------------------------------


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

    with pytest.raises(InfeasibleBudget, match=r"with r_min=9 is .*\[108, 576\]"):
        allocate(Scores(modules, scores_of(modules)), 4, r_min=9)
    with pytest.raises(InfeasibleBudget, match=r"with r_max=3 is .*\[12, 36\]"):
        allocate(Scores(modules, scores_of(modules)), 8, r_max=3)


@pytest.mark.parametrize("rule", ["proportional", "uniform", "layers"])
@pytest.mark.parametrize("value", [1, COST // 2, COST - 1])
def test_the_interval_of_a_refused_budget_is_that_of_all_budgets(rule, value):
    """Default bounds follow from the budget: those of the refused one limit no other."""
    scores = Scores(llama_like(), scores_of(llama_like()), rule=rule)
    options = {"n_layers": 4} if rule == "layers" else {}
    full = sum(m.cost * m.full_rank for m in llama_like())

    with pytest.raises(InfeasibleBudget, match=f"parameters from {COST} to {full}$") as caught:
        allocate(scores, Budget("parameters", value), **options)

    assert caught.value.interval == (COST, full)
    assert "r_max" not in str(caught.value)
    for end in caught.value.interval:
        assert allocate(scores, Budget("parameters", end), **options).spent.parameters == end


@pytest.mark.parametrize(
    ("options", "interval"),
    [
        ({"max_lora_rank": 16}, "rank from 1 to 16"),
        ({"rank_menu": [2, 4, 8]}, "rank from 2 to 8"),
        ({"multiple_of": 8}, "rank from 8 to 48"),
        ({"r_min": 4}, "rank from 4 to 48"),
        ({"r_max": 9}, "rank from 1 to 9"),
    ],
    ids=str,
)
def test_the_interval_keeps_to_what_was_given(options, interval):
    """A server's highest rank, a menu, multiples and a bound; each end has a plan."""
    scores = Scores(llama_like(), scores_of(llama_like()))
    with pytest.raises(InfeasibleBudget, match=f"{interval}$"):
        allocate(scores, 100, **options)

    for end in (int(word) for word in interval.split() if word.isdigit()):
        plan = allocate(scores, end, **options)
        assert sum(plan.ranks.values()) == end * len(plan.modules)


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
    """Exactly the mean rank for rank budgets, else the largest that fits or one more."""
    modules = llama_like()
    scores = scores_of(modules)

    by_rank = allocate(Scores(modules, scores), 8)
    by_parameters = allocate(Scores(modules, scores), Budget("parameters", 9 * COST - 1))

    assert set(by_rank.controls["uniform"].values()) == {8}
    assert set(by_parameters.controls["uniform"].values()) == {8, 9}


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
