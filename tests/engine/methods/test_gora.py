"""GoRA's importance turned into ranks: parameters in proportion, and the budget met."""

from dataclasses import replace

import numpy as np
import pytest

from fimlora import Budget, allocate, measure, score
from fimlora.errors import InvalidOption
from support.models import make_batch, tiny


@pytest.fixture(scope="module")
def statistics():
    model, targets = tiny("llama_gqa_lm")
    batches = [
        make_batch("llama_gqa_lm", lengths, seed=i)
        for i, lengths in enumerate([[31, 9], [7, 3]])
    ]
    return measure(model, batches, target_modules=targets, record="weight_gradient")


@pytest.mark.parametrize("unit", ["rank", "parameters"])
def test_parameters_are_in_proportion_to_the_importance(statistics, unit):
    """Within a rank each, where no bound is met; and the budget is spent."""
    large = tuple(
        replace(m, d_in=100 * m.d_in, d_out=100 * m.d_out) for m in statistics.modules
    )
    statistics = replace(statistics, modules=large)  # so that whole ranks are fine steps
    total = 2000 * sum(m.cost for m in large) // len(large)
    budget = Budget("parameters", total) if unit == "parameters" else Budget("rank", 200)

    plan = allocate(score(statistics, "gora"), budget, r_min=1, r_max=2000)

    importances = {
        name: value.item() for name, value in statistics.quantities["weight_gradient"].items()
    }
    spent = sum(plan.ranks[m.name] * m.cost for m in large)
    for m in large:
        share = spent * importances[m.name] / sum(importances.values())
        inside = 1 < plan.ranks[m.name] < 2000
        assert not inside or plan.ranks[m.name] * m.cost == pytest.approx(share, abs=2 * m.cost)
    assert sum(1 < r < 2000 for r in plan.ranks.values()) > len(large) // 2
    if unit == "rank":
        assert sum(plan.ranks.values()) == 200 * len(large)
    else:
        assert 0 <= total - spent < max(m.cost for m in large)


def test_the_importance_over_the_cost_is_the_score(statistics):
    """Neither the LoRA scale nor how the Fisher information is aggregated enters."""
    wanted = [
        statistics.quantities["weight_gradient"][m.name].item() / (m.d_in + m.d_out)
        for m in statistics.modules
    ]

    for options in ({}, {"scale": 7}, {"aggregation": "max"}):
        found = score(statistics, "gora", **options)
        assert np.allclose([*found.by_module.values()], wanted, rtol=1e-15, atol=0)


def test_it_is_asked_for_by_what_it_needs(statistics):
    """The message says what to record."""
    with pytest.raises(
        InvalidOption, match=r"'gora' needs weight_gradient.*record='weight_gradient'"
    ):
        score(replace(statistics, quantities={}), "gora")
