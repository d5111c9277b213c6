"""The plan type: what it derives, what it writes, what it refuses to read."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from fimlora.allocation import allocate
from fimlora.allocation.controls import RANDOM
from fimlora.errors import InvalidAdapter, InvalidOption
from fimlora.plan import Budget, RankPlan
from support.plans import MODULES, SCORES


@pytest.fixture
def plan():
    return allocate(SCORES, 8, provenance={"estimator": "exact", "n_batches": 8})


def test_modules_know_their_layer_kind_and_cost():
    """From the name alone; a module outside the repeated blocks has no layer."""
    assert [(m.layer, m.kind, m.cost) for m in MODULES] == [
        (0, "self_attn.q_proj", 128),
        (1, "mlp.down_proj", 240),
        (2, "attn.c_attn", 96),
        (None, "score", 67),
    ]


def test_spending_counts_ranks_and_parameters(plan):
    """The same for the plan and for any other ranks of its modules."""
    assert plan.spent.ranks == 32
    assert plan.spent.parameters == sum(m.cost * plan.ranks[m.name] for m in MODULES)
    assert plan.spending_of(dict.fromkeys(plan.ranks, 1)).parameters == 128 + 240 + 96 + 67


@pytest.mark.parametrize(("scale", "alpha"), [(2, 20), (0.5, 5), (0.25, 2.5)])
def test_alpha_is_scale_times_rank(scale, alpha):
    """An integer whenever it is a whole number."""
    plan = allocate(SCORES, 8, scale=scale, rule="uniform")
    name = MODULES[0].name

    assert plan.ranks[name] == 10  # the head holds 3 ranks at most, others get the rest
    assert plan.alpha(name) == alpha
    assert type(plan.alpha(name)) is type(alpha)


def test_json_says_all_a_reader_needs(plan):
    """Budget with its limit, spending of the plan and of all controls, a row per module."""
    data = plan.to_json()

    assert data["format"] == "fimlora.rank_map/1"
    budget = {"unit": "rank", "value": 8, "bytes_per_parameter": 4}
    assert data["budget"] == budget | {"limit": 32, "unspent": 0}
    assert data["spent"]["ranks"] == data["controls"]["uniform"]["ranks"] == 32
    assert data["controls"].keys() == {"uniform", *RANDOM}
    row = data["modules"][1]
    assert (row["name"], row["layer"], row["kind"]) == (MODULES[1].name, 1, "mlp.down_proj")
    assert (row["score"], row["rank"]) == (2.0, plan.ranks[MODULES[1].name])
    assert row["alpha"] == 2 * row["rank"]
    assert row["parameters"] == 240 * row["rank"]


def test_whole_budgets_are_alike_however_they_are_written():
    """8 and 8.0 are one budget and give the same bytes."""
    as_text = [json.dumps(allocate(SCORES, b).to_json()) for b in (8, 8.0)]

    assert Budget("rank", 8.0) == Budget("rank", 8)
    assert as_text[0] == as_text[1]


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_a_budget_is_positive_and_finite(value):
    """Nothing else can be spent."""
    with pytest.raises(InvalidOption, match="above 0 and finite"):
        Budget("rank", value)


UNTYPED = """
import json, sys
from fractions import Fraction
import numpy as np
from fimlora.errors import InvalidOption
from fimlora.plan import Budget
for arguments in json.loads(sys.argv[1]):
    try:
        Budget(*arguments)
        sys.exit(f"{arguments} passed")
    except InvalidOption as error:
        print(error)
for number in (np.int64, np.float64, np.float32, Fraction):
    whole, half = Budget("rank", number(8)), Budget("rank", number(17) / 2)
    assert (whole, half) == (Budget("rank", 8), Budget("rank", 8.5))
    assert (type(whole.value), type(half.value)) == (int, float)
"""

NO_BUDGETS = [
    (["ranks", 8], "unit 'ranks' is unknown; allowed are rank, parameters, fraction, bytes"),
    (["rank", "8"], "rank='8': it must be a number"),
    (["rank", None], "rank=None: it must be a number"),
    (["rank", True], "rank=True: it must be a number"),
    (["rank", [8]], "rank=[8]: it must be a number"),
    (["fraction", 1.01], "fraction=1.01: a fraction of the base model is at most 1"),
    (["bytes", 4000, 0], "bytes_per_parameter=0; allowed are 1, 2, 4 and 8"),
    (["bytes", 4000, 3], "bytes_per_parameter=3; allowed"),
    (["bytes", 4000, True], "bytes_per_parameter=True; allowed"),
    (["bytes", 4000, "4"], "bytes_per_parameter='4'; allowed"),
]


@pytest.mark.slow
def test_budgets_that_mean_nothing_are_refused():
    """Each error says what was given; any kind of real number is stored as a plain one.

    In a process of its own, as types are checked here before the code can see them.
    """
    given = json.dumps([arguments for arguments, _ in NO_BUDGETS])
    run = subprocess.run(
        [sys.executable, "-c", UNTYPED, given],
        env={"PYTHONPATH": ":".join(sys.path)},
        check=True, capture_output=True, text=True,
    )  # fmt: skip

    for said, (_, message) in zip(run.stdout.splitlines(), NO_BUDGETS, strict=True):
        assert message in said


def test_a_rank_map_with_such_a_budget_is_refused(plan):
    """It was not written by a sound tool."""
    data = plan.to_json()
    data["budget"] |= {"unit": "fraction", "value": 2}

    with pytest.raises(InvalidAdapter, match="at most 1"):
        RankPlan.from_json(data)


def test_a_later_format_is_refused(plan):
    """A reader must not guess at fields it does not know."""
    with pytest.raises(InvalidAdapter, match="rank_map/2"):
        RankPlan.from_json(plan.to_json() | {"format": "fimlora.rank_map/2"})


def test_what_is_known_of_a_plan_goes_with_it(plan):
    """Both kinds of evidence come back from the rank map; without them it has no such key."""
    evidence = {"signal": {"moved": 0.25}, "confidence": {"unresolved": ["score"]}}
    known = replace(plan, **evidence)

    written = json.loads(json.dumps(known.to_json()))

    assert {name: written[name] for name in evidence} == evidence
    assert RankPlan.from_json(written) == known
    assert evidence.keys().isdisjoint(plan.to_json())


@pytest.mark.parametrize(
    "facts",
    [
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": "lm_head"},
        {"modules_to_save": {"lm_head": "many"}},
        {"modules_to_save": {"lm_head": True}},
        {"modules_to_save": {"lm_head": 8}, "untied_by_saving": ["embed_tokens"]},
        {"modules_to_save": {"lm_head": 8}, "untied_by_saving": {"lm_head": 3}},
    ],
)
def test_what_a_file_says_of_modules_that_train_whole_is_looked_at(plan, facts):
    """Anybody may have written it; what reads a plan counts by it."""
    data = plan.to_json()
    data["provenance"] = facts

    with pytest.raises(InvalidAdapter, match=r"provenance\.\w+ must be an object"):
        RankPlan.from_json(data)
