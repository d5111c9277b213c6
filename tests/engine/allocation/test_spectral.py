"""The rule ``spectral``: optimal against brute force, and as a rule of `allocate`."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fimlora import Scores, Statistics, allocate, measure, score
from fimlora.adapter.rank_map import render_text
from fimlora.adapter.write import write_adapter
from fimlora.errors import InfeasibleBudget, InvalidOption, InvalidScore
from fimlora.plan import Budget, RankPlan, TargetModule
from support.allocation import cases, solve_by_gain
from support.models import make_batch, tiny

TOP = 4
VALUE = st.one_of(st.sampled_from([0.0, 1e-160, 1.0, 2.0]), st.floats(1e-6, 1e3))
SPECTRUM = st.lists(VALUE, min_size=TOP, max_size=TOP)


def captured(spectra, ranks):
    """Energy of the largest values, summed exactly."""
    return math.fsum(
        value**2
        for name, values in spectra.items()
        for value in sorted(values, reverse=True)[: ranks[name]]
    )


def all_ranks(spectra, options):
    """Every assignment inside the bounds that does not exceed the limit."""
    weights = options.get("weights") or dict.fromkeys(spectra, 1)
    choices = [range(options["lowest"][n], options["highest"][n] + 1) for n in spectra]
    for ranks in itertools.product(*choices):
        found = dict(zip(spectra, ranks, strict=True))
        if sum(weights[n] * r for n, r in found.items()) <= options["limit"]:
            yield found


# --- optimal -----------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(cases(SPECTRUM, max_size=5, top=TOP))
def test_at_equal_costs_nothing_captures_more(case):
    """Among all ranks in bounds, ours capture the most, and they meet the budget exactly."""
    spectra, options = case

    ranks = solve_by_gain(spectra, **options)

    best = max(captured(spectra, other) for other in all_ranks(spectra, options))
    assert captured(spectra, ranks) >= best * (1 - 1e-9)
    assert sum(ranks.values()) == options["limit"]


@settings(max_examples=100, deadline=None)
@given(cases(SPECTRUM, max_size=5, top=TOP, most_cost=9))
def test_at_unequal_costs_the_loss_is_below_the_first_step_that_does_not_fit(case):
    """The bound that the relaxed problem gives, against brute force."""
    spectra, options = case
    weights = options["weights"]
    steps = sorted(
        (
            (value**2 / weights[n], value**2, weights[n])
            for n, values in spectra.items()
            for r, value in enumerate(sorted(values, reverse=True))
            if options["lowest"][n] <= r < options["highest"][n]
        ),
        reverse=True,
    )
    left = options["limit"] - sum(weights[n] * r for n, r in options["lowest"].items())
    missed = 0.0
    for _, gain, weight in steps:
        if weight > left:
            missed = gain
            break
        left -= weight

    ranks = solve_by_gain(spectra, **options)

    best = max(captured(spectra, other) for other in all_ranks(spectra, options))
    assert captured(spectra, ranks) >= best - missed - 1e-9 * best


def test_the_known_case_where_the_greedy_choice_is_not_the_best():
    """Costs 1 and 2, gains 2 and 3, budget 2: it takes the 2, and says nothing else."""
    spectra = {"cheap": [2**0.5], "dear": [3**0.5]}
    bounds = {"lowest": dict.fromkeys(spectra, 0), "highest": dict.fromkeys(spectra, 1)}

    assert solve_by_gain(spectra, limit=2, weights={"cheap": 1, "dear": 2}, **bounds) == {
        "cheap": 1,
        "dear": 0,
    }


def test_multiples_and_groups_gain_what_their_ranks_gain_together():
    """A step of two ranks, or of two modules, is weighed as a whole against its cost."""
    bounds = {"lowest": dict.fromkeys("abc", 0), "highest": dict.fromkeys("abc", 4)}
    spectra = {"a": [10.0, 0.0, 0.0, 0.0], "b": [8.0, 8.0, 0.0, 0.0], "c": [1.0, 1.0, 1.0, 1.0]}

    assert solve_by_gain(spectra, limit=1, **bounds) == {"a": 1, "b": 0, "c": 0}
    assert solve_by_gain(spectra, limit=2, multiple_of=2, **bounds) == {"a": 0, "b": 2, "c": 0}
    tied = solve_by_gain(spectra, limit=4, groups=[("a", "c")], **bounds)
    assert tied == {"a": 1, "b": 2, "c": 1}


def test_without_any_gain_ranks_are_spread_evenly():
    """Zero gradients are no reason to fail, and the budget is still met."""
    spectra = {n: [0.0] * 4 for n in "abc"}
    bounds = {"lowest": dict.fromkeys(spectra, 0), "highest": dict.fromkeys(spectra, 4)}

    assert solve_by_gain(spectra, limit=7, **bounds) == {"a": 3, "b": 2, "c": 2}


# --- as a rule of allocate ---------------------------------------------------------------

MODULES = tuple(
    TargetModule(f"model.layers.{i}.{kind}", 128, d_out)
    for i in range(2)
    for kind, d_out in (("q", 128), ("v", 96))
)
SPECTRA = {m.name: (5.0 - i) / np.arange(1, 65) for i, m in enumerate(MODULES)}


@pytest.mark.parametrize(
    "budget", [Budget("rank", 8), Budget("parameters", 7001), Budget("bytes", 28_004)], ids=str
)
def test_a_plan_by_spectra_stands_beside_both_controls(budget):
    """Same budget for all; scores are the energy captured, more than the controls capture."""
    plan = allocate(
        Scores(MODULES, spectra=SPECTRA), budget, rule="spectral", r_min=0, r_max=32
    )

    assert plan.rule == "spectral"
    assert plan.scores == pytest.approx(
        {n: float(np.square(s[: plan.ranks[n]]).sum()) for n, s in SPECTRA.items()}
    )
    for ranks in plan.controls.values():
        assert captured(SPECTRA, ranks) <= captured(SPECTRA, plan.ranks)
    if budget.unit == "rank":
        assert plan.spent.ranks == 32
    else:
        assert 7001 - 224 < plan.spent.parameters <= 7001


def test_the_floor_is_half_the_mean_rank_unless_zero_is_asked_for():
    """Leaving modules out is the caller's word, and only under this rule."""
    spectra = SPECTRA | {MODULES[3].name: np.full(64, 1e-9)}

    by_default = allocate(Scores(MODULES, spectra=spectra), 4, rule="spectral")
    with_holes = allocate(Scores(MODULES, spectra=spectra), 4, rule="spectral", r_min=0)

    assert by_default.ranks[MODULES[3].name] == by_default.r_min == 2
    assert with_holes.ranks[MODULES[3].name] == 0
    assert "1 modules not targeted" in render_text(with_holes)
    with pytest.raises(InvalidOption, match="r_min=0"):
        allocate(Scores(MODULES, dict.fromkeys(spectra, 1.0)), 4, r_min=0)


def test_a_budget_below_one_rank_each_leaves_modules_out():
    """Parameters for two ranks among four modules, and controls that spend no more."""
    plan = allocate(
        Scores(MODULES, spectra=SPECTRA), Budget("parameters", 512), rule="spectral", r_min=0
    )

    assert sorted(plan.ranks.values()) == [0, 0, 1, 1]
    assert all(plan.spending_of(r).parameters <= 512 for r in plan.controls.values())


def test_a_plan_with_holes_is_written_without_them(tmp_path):
    """Rank 0 stays in the rank map; PEFT's config and the weights know nothing of it."""
    plan = allocate(
        Scores(MODULES, spectra=SPECTRA | {MODULES[1].name: np.zeros(64)}),
        2,
        rule="spectral",
        r_min=0,
    )

    write_adapter(
        plan,
        tmp_path / "a",
        base_model="m",
        task_type="CAUSAL_LM",
        module_names=[m.name for m in MODULES],
    )

    import json

    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    rank_map = json.loads((tmp_path / "a" / "rank_map.json").read_text())
    ends = [n for n in plan.ranks if any(n.endswith(t) for t in config["target_modules"])]
    assert (
        ends
        == [n for n, rank in plan.ranks.items() if rank]
        == [m.name for m in (MODULES[0], *MODULES[2:])]
    )
    assert MODULES[1].name not in config["rank_pattern"]
    assert [row["rank"] for row in rank_map["modules"]] == list(plan.ranks.values())
    assert RankPlan.from_json(rank_map) == plan


def test_ranks_beyond_the_recorded_values_are_refused():
    """What they would gain is not known; the default ceiling keeps below."""
    small = (*MODULES[:3], TargetModule("score", 128, 3))
    spectra = {m.name: np.ones(min(64, m.d_out)) for m in small}

    assert allocate(Scores(small, spectra=spectra), 40, rule="spectral", r_min=1).r_max == 64
    with pytest.raises(InvalidOption, match=r"64 ranks of 'model.layers.0.q' gain, not 65"):
        allocate(Scores(small, spectra=spectra), 8, rule="spectral", r_max=65)
    with pytest.raises(InfeasibleBudget, match=r"\[4, 195\] of ranks.*from 1 to 48\.75"):
        allocate(Scores(small, spectra=spectra), 65, rule="spectral", r_min=1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_a_value_no_spectrum_has_is_refused_by_name(value):
    """NaN, infinite and negative values name their module."""
    with pytest.raises(InvalidScore, match=MODULES[2].name):
        allocate(
            Scores(MODULES, spectra=SPECTRA | {MODULES[2].name: [1.0, value]}),
            1,
            rule="spectral",
        )


def test_statistics_serve_the_rule_from_a_file_and_say_what_they_lack(tmp_path):
    """Measured with spectra they plan without a model; without, the error says how."""
    model, targets = tiny("llama_gqa_lm")
    batches = [make_batch("llama_gqa_lm", [9, 5])]
    statistics = measure(model, batches, target_modules=targets, record="spectra")
    statistics.save(tmp_path / "s")

    stored = score(Statistics.load(tmp_path / "s"), "spectral")
    plan = allocate(stored, 8)

    assert plan == allocate(score(statistics, "spectral"), 8)
    assert plan.spent.ranks == 8 * len(statistics.modules)
    assert plan.provenance["unresolved_spectra"] == []
    assert "aggregation" not in plan.provenance
    with pytest.raises(InvalidOption, match="record='spectra'"):
        score(measure(model, batches, target_modules=targets), "spectral")


def test_the_rule_needs_no_torch():
    """The service solves it anew from stored numbers."""
    code = (
        "import sys; from fimlora import allocate, Scores, TargetModule as T; "
        "allocate(Scores([T('a', 2, 2)], spectra={'a': [2., 1.]}), 1, rule='spectral'); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
