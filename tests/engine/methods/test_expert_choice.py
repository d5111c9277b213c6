"""Which experts are selected, and what plans count of them."""

import math
from dataclasses import replace

import numpy as np
import pytest

from fimlora import Budget, Statistics, allocate, measure, score, select_experts
from fimlora.confidence.evidence import with_confidence
from fimlora.confidence.signal import source_of, with_signal
from fimlora.errors import InvalidOption
from fimlora.methods.expert_choice import (
    ExpertChoice,
    check_selectable,
    least_and_most,
    with_experts,
)
from fimlora.methods.registry import METHODS
from fimlora.statistics.options import Estimator
from support.experts import LINEAR, expert_gradients, mixture, mixture_batches

TARGETS = {"target_modules": [LINEAR], "target_parameters": "all", "estimator": "exact"}


@pytest.fixture(scope="module")
def measured():
    """A mixture of 4 experts in each layer, measured with its null and halves."""
    return measure(
        mixture("mixtral"), mixture_batches(), **TARGETS, null=True, halves=True, rank=4
    )


def selected_of(statistics):
    """The selected experts by layer, the same for all projections of it."""
    found = {}
    for module in statistics.modules:
        if module.n_experts is not None:
            place = module.name.rpartition(".")[0]
            assert found.setdefault(place, module.experts) == module.experts
    return found


def tokens_of(statistics):
    return {
        name.rpartition(".")[0]: counts
        for name, counts in statistics.quantities["expert_tokens"].items()
    }


def test_the_most_routed_are_as_many_as_asked(measured):
    """By tokens, the lower number first where they are equal; rounded up, and at least one."""
    for share, n in ((0.01, 1), (0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3), (1, 4)):
        chosen = selected_of(select_experts(measured, "routed", share=share))
        for place, counts in tokens_of(measured).items():
            order = sorted(range(len(counts)), key=lambda e: (-counts[e], e))
            assert chosen[place] == tuple(sorted(order[:n]))


def test_equal_experts_are_taken_in_order(measured):
    """Nothing is left to chance where tokens are equal."""
    counts = {n: np.full_like(c, 7) for n, c in measured.quantities["expert_tokens"].items()}
    even = replace(measured, quantities={**measured.quantities, "expert_tokens": counts})

    assert set(selected_of(select_experts(even, "routed", share=0.5)).values()) == {(0, 1)}


def test_a_coverage_takes_the_fewest_that_have_it(measured):
    """As ESFT does: one fewer has less."""
    for coverage in (0.3, 0.6, 0.9, 1):
        chosen = select_experts(measured, "routed", coverage=coverage)
        for place, counts in tokens_of(measured).items():
            some = [counts[e] for e in selected_of(chosen)[place]]
            assert sum(some) >= coverage * sum(counts) - 1e-9
            assert sum(some) - min(some) < coverage * sum(counts)
        assert chosen.expert_selection["tokens"] >= coverage - 1e-6


def test_by_fisher_those_with_the_largest_gradients_are_taken(measured):
    """Energies of plain autograd, over both projections of a layer."""
    fused = [m for m in measured.modules if m.n_experts is not None]
    gradients = expert_gradients(mixture("mixtral"), mixture_batches(), fused)
    sums = {}
    for module in fused:
        energies = gradients[module.name].square().sum(dim=(0, 2, 3)) / module.d_in
        place = module.name.rpartition(".")[0]
        sums[place] = sums.get(place, 0) + energies

    chosen = selected_of(select_experts(measured, "fisher", share=0.5))

    for place, energies in sums.items():
        assert set(chosen[place]) == set(energies.argsort(descending=True)[:2].tolist())


def test_random_takes_as_many_and_goes_by_its_seed(measured):
    """The control of either: as many per layer at the same budget, other ones, the same again."""
    routed = select_experts(measured, "routed", coverage=0.6)
    drawn = [select_experts(measured, "random", coverage=0.6, seed=s) for s in range(8)]

    counts = [{k: len(v) for k, v in selected_of(s).items()} for s in (routed, *drawn)]
    assert all(each == counts[0] for each in counts)
    assert len({tuple(selected_of(s).values()) for s in drawn}) > 2
    again = select_experts(measured, "random", coverage=0.6, seed=0)
    assert selected_of(again) == selected_of(drawn[0])
    budget = Budget("parameters", 4000)
    plans = [allocate(score(s), budget, r_min=1) for s in (routed, drawn[0])]
    cheapest = min(m.cost for m in plans[0].modules)
    assert all(0 <= plan.unspent < 4 * cheapest for plan in plans)


def test_a_budget_buys_higher_ranks_for_fewer_experts(measured):
    """What trains is counted, by the plan and by its controls; what is held beside it."""
    budget = Budget("parameters", 6000)
    whole = allocate(score(measured), budget, r_min=1, r_max=16)

    plan = allocate(
        score(select_experts(measured, "routed", share=0.25)), budget, r_min=1, r_max=16
    )

    assert plan.spent.ranks > whole.spent.ranks
    counted = sum(
        (m.d_in + m.d_out) * plan.ranks[m.name]
        for m in plan.modules  # one expert of each
    )
    assert counted == plan.spent.parameters <= 6000
    for control in plan.controls.values():
        assert plan.spending_of(control).parameters <= 6000
    row = next(r for r in plan.to_json()["modules"] if "n_experts" in r)
    assert (row["n_experts"], len(row["experts"])) == (4, 1)
    assert type(plan).from_json(plan.to_json()).modules == plan.modules
    assert plan.provenance["expert_selection"]["select"] == "routed"


def test_a_score_is_the_mean_over_what_trains(measured):
    """All experts give the plain score; of one, its own energy over its own numbers."""
    every = select_experts(measured, "routed", share=1)
    assert score(every).by_module == pytest.approx(score(measured).by_module)

    one = select_experts(measured, "routed", share=0.25)
    module = next(m for m in one.modules if m.n_experts is not None)
    row = measured.row_energies[module.name][module.experts[0]]
    wanted = measured.scale**2 * row / (3 * module.d_in * measured.n_examples * module.d_out)
    assert math.isclose(score(one).by_module[module.name], wanted, rel_tol=1e-9)


def test_signal_is_stated_and_confidence_says_why_not(measured):
    """Null and halves are of the same experts; values per example are of all of them."""
    some = select_experts(measured, "routed", share=0.5)
    assert all(selected_of(part) == selected_of(some) for part in some.parts.values())

    plan = allocate(score(some), 4, r_min=1)
    plan = with_confidence(some, with_signal(plan, source_of(some)))

    assert plan.signal["moved_by_chance"] is None
    assert plan.signal["moved_by_labels"] is not None
    assert plan.confidence is None
    assert plan.warnings[0].code == "experts_selected"
    assert any("experts are selected" in w.message for w in plan.warnings)


def test_a_selection_is_saved_and_read(measured, tmp_path):
    """With what it was made by; statistics without one have the bytes they had."""
    some = select_experts(measured, "random", share=0.5, seed=3)
    some.save(tmp_path / "s")

    read = Statistics.load(tmp_path / "s")

    assert read.modules == some.modules
    assert read.expert_selection == some.expert_selection
    assert score(read).by_module == score(some).by_module
    assert b"expert_selection" not in measured.to_bytes()


def test_methods_that_look_at_all_experts_are_refused(measured):
    """By name, with those that are not."""
    some = select_experts(measured, "routed", share=0.5)
    for name, method in METHODS.items():
        if not method.takes_selected_experts:
            with pytest.raises(InvalidOption, match="take one of: fim, fim-over-null, vila"):
                score(some, name)
    for name in ("fim", "fim-over-null", "uniform", "random"):
        assert allocate(score(some, name), 4, r_min=1).modules == some.modules


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"select": "best", "share": 0.5}, "select='best'; allowed are 'routed', 'fisher', "),
        ({"select": "routed"}, "exactly one of both"),
        ({"select": "routed", "share": 0.5, "coverage": 0.5}, "exactly one of both"),
        ({"select": "routed", "share": 0}, "share=0; it must be above 0, at most 1"),
        ({"select": "routed", "share": 1.5}, "share=1.5; it must be above 0"),
        ({"select": "routed", "coverage": float("nan")}, "coverage=nan"),
        ({"select": "routed", "share": True}, "share=True"),
    ],
)
def test_a_choice_that_is_none_is_refused(options, message):
    """With what is allowed."""
    with pytest.raises(InvalidOption, match=message):
        ExpertChoice(**options)


def test_what_cannot_be_selected_is_refused(measured):
    """No experts among the targets, no tokens, twice, and budgets of files."""
    linear = replace(
        measured, modules=tuple(m for m in measured.modules if m.n_experts is None)
    )
    with pytest.raises(InvalidOption, match="no expert is a target"):
        select_experts(linear, "routed", share=0.5)
    with pytest.raises(InvalidOption, match="were not counted"):
        select_experts(replace(measured, quantities={}), "routed", share=0.5)
    some = select_experts(measured, "routed", share=0.5)
    with pytest.raises(InvalidOption, match="selected already"):
        select_experts(some, "routed", share=0.5)
    with pytest.raises(InvalidOption, match="give it in parameters"):
        allocate(score(some), Budget("bytes", 40_000), r_min=1)
    assert with_experts(measured, None) is measured


def test_what_is_asked_before_measuring_costs_what_is_selected(measured):
    """As many experts as there will be, where that is known; one and all where it is not."""
    for share in (0.25, 0.5, 0.8):
        choice = ExpertChoice("routed", share=share)
        [(told, _)] = least_and_most(measured.modules, choice)
        wanted = with_experts(measured, choice).modules
        assert sum(m.cost for m in told) == sum(m.cost for m in wanted)
    least, most = least_and_most(measured.modules, ExpertChoice("routed", coverage=0.9))
    for (some, _), n in ((least, 1), (most, 4)):
        assert {len(m.experts) for m in some if m.n_experts} == {n}
    assert least_and_most(measured.modules, None) == [(list(measured.modules), {})]


def test_what_can_never_be_selected_is_refused_before_anything_is_measured(measured):
    """By modules alone: no experts, nothing to go by."""
    fisher = ExpertChoice("fisher", share=0.5)
    for choice in (fisher, ExpertChoice("routed", coverage=0.5), None):
        check_selectable(measured.modules, choice)
    linear = [m for m in measured.modules if m.n_experts is None]
    with pytest.raises(InvalidOption, match="no expert is a target"):
        check_selectable(linear, fisher)
    with pytest.raises(InvalidOption, match="no Fisher information is measured"):
        check_selectable(measured.modules, fisher, has_fisher=False)
    check_selectable(measured.modules, ExpertChoice("random", share=0.5), has_fisher=False)


def test_runs_that_see_nothing_of_experts_say_nothing_of_them(measured):
    """No empty facts by name."""
    seen = measured.provenance()["experts"]
    assert all(set(facts) == {"tokens", "fisher"} for facts in seen.values())
    unseen = replace(measured, quantities={}, row_energies={}, estimator=Estimator.NONE)
    assert "experts" not in unseen.provenance()
