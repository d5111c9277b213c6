"""What a plan says of its scores goes with its method, whoever planned from the statistics first."""

import itertools
import json

import pytest

from fimlora import Budget, allocate, measure, score
from fimlora.adapter.config import build_adapter_config
from fimlora.adapter.text_files import rank_map
from fimlora.methods.registry import METHODS, records_needed
from fimlora.replan import WrittenAdapter, replan
from support.models import make_batch, tiny

NAME = "llama_gqa_lm"
BUDGET = Budget("rank", 4)
FACTS = {"engine": "0.1.0", "task": "causal_lm", "batch_size": 3}


@pytest.fixture(scope="module")
def statistics():
    """All that any method needs."""
    model, targets = tiny(NAME)
    return measure(
        model,
        [make_batch(NAME, [9, 3, 5]), make_batch(NAME, [4, 6], seed=1)],
        target_modules=targets,
        record=records_needed(*METHODS),
        null=True,
        retain=[make_batch(NAME, [4, 2], seed=2)],
    )


@pytest.fixture(scope="module")
def fresh(statistics):
    """The plan of each method right after measuring, as its adapter has it."""

    def plan(method):
        plan = allocate(score(statistics, method, scale=2), BUDGET, scale=2, provenance=FACTS)
        config = build_adapter_config(
            plan, base_model="tiny", task_type="CAUSAL_LM", layout="B"
        )
        return WrittenAdapter(json.loads(json.dumps(rank_map(plan, layout="B"))), config)

    return {method: plan(method) for method in METHODS}


@pytest.mark.parametrize("first", METHODS)
def test_a_plan_made_anew_says_what_a_fresh_one_says(statistics, fresh, first):
    """By every other method, from the adapter that the first one has written."""
    for method in METHODS:
        plan = replan(statistics, fresh[first], BUDGET, method=method)

        assert plan.provenance == fresh[method].rank_map["provenance"], method


@pytest.mark.parametrize("method", METHODS)
def test_a_method_names_all_that_its_plans_say(statistics, method):
    """The rest is of the run, and the same for all methods."""
    said = score(statistics, method).provenance.keys()
    of_all = set.intersection(*(set(score(statistics, name).provenance) for name in METHODS))

    assert said - of_all == METHODS[method].states


def test_methods_differ_in_what_they_say(fresh):
    """Else nothing were asked here."""
    said = [set(written.rank_map["provenance"]) for written in fresh.values()]

    assert sum(a != b for a, b in itertools.combinations(said, 2)) > len(METHODS)
