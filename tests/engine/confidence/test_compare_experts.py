"""Selected experts beside random ones: as many in each layer, spending the same."""

import pytest

from fimlora import Budget, allocate, compare, measure, score, select_experts
from fimlora.errors import InvalidOption
from fimlora.methods.expert_choice import ExpertChoice, experts_by_layer, with_experts
from fimlora_contract.comparisons import Comparison
from support.experts import LINEAR, expert_gradients, mixture, mixture_batches

METHODS = ("fim", "uniform", "random")
BUDGET = Budget("parameters", 6000)


@pytest.fixture(scope="module")
def measured():
    """A mixture of 4 experts in each layer, with its null and halves."""
    return measure(
        mixture("mixtral"), mixture_batches(), target_modules=[LINEAR],
        target_parameters="all", estimator="exact", null=True, halves=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    "experts",
    [
        {"select": "routed", "share": 0.5},
        {"select": "fisher", "share": 0.25},
        {"select": "routed", "coverage": 0.6},
        {"select": "fisher", "coverage": 0.7},
    ],
    ids=str,
)
def test_random_experts_are_as_many_and_spend_the_same(measured, experts):
    """In each layer, whatever they were selected by; and what is said of either is so."""
    found = compare(measured, BUDGET, methods=METHODS, r_min=1, seed=3, experts=experts)

    asked, control = found.experts
    some = select_experts(measured, **experts)
    assert asked.layers == experts_by_layer(some.modules)
    assert control.facts["select"] == "random"
    assert {p: len(e) for p, e in control.layers.items()} == {
        p: len(e) for p, e in asked.layers.items()
    }
    pairs = [
        {(p, e) for p, names in row.layers.items() for e in names} for row in found.experts
    ]
    assert (asked.shared, control.shared) == (len(pairs[0]), len(pairs[0] & pairs[1]))
    fused = [m for m in measured.modules if m.n_experts is not None]
    for row in found.experts:
        for method, plan in row.plans.items():
            assert plan.spent.parameters <= BUDGET.value
            step = max(m.cost for m in plan.modules)
            assert found.plans[method].spent.parameters - plan.spent.parameters < step
        tokens = {
            m.name.rpartition(".")[0]: measured.quantities["expert_tokens"][m.name]
            for m in fused
        }
        seen = sum(tokens[p][int(e)] for p, names in row.layers.items() for e in names)
        assert row.facts["tokens"] == pytest.approx(
            seen / sum(map(sum, tokens.values())), abs=1e-6
        )
    assert found.plans == {
        m: allocate(score(some, m), BUDGET, r_min=1, seed=3) for m in METHODS
    }


def test_the_share_of_fisher_information_is_that_of_plain_autograd(measured):
    """Squares of the gradients of whole matrices, over their inputs, and both projections."""
    fused = [m for m in measured.modules if m.n_experts is not None]
    gradients = expert_gradients(mixture("mixtral"), mixture_batches(), fused)
    of = {m.name: gradients[m.name].square().sum(dim=(0, 2, 3)) / m.d_in for m in fused}

    for row in compare(
        measured, BUDGET, methods=METHODS, experts={"select": "fisher", "share": 0.5}
    ).experts:
        some = sum(
            float(of[m.name][int(e)])
            for m in fused
            for e in row.layers[m.name.rpartition(".")[0]]
        )
        whole = sum(float(each.sum()) for each in of.values())
        assert row.fisher == pytest.approx(some / whole, rel=1e-4)


def test_a_comparison_is_read_as_it_was_written(measured):
    """With its selections; without any, nothing is said of experts."""
    found = compare(
        measured, BUDGET, r_min=1, experts={"select": "routed", "share": 0.5}
    ).to_json()
    read = Comparison.model_validate(found).model_dump(mode="json", exclude_unset=True)
    assert read == found
    assert {"fim", "uniform", "random"} <= {m["method"] for m in found["methods"]}
    assert "some of them are selected" in found["left_out"]["spectral"]
    assert "experts" not in compare(measured, BUDGET, methods=METHODS).to_json()


def test_what_is_random_itself_has_no_other_beside_it(measured):
    """One selection alone; and what cannot be selected is refused."""
    asked = {"select": "random", "share": 0.5}
    [row] = compare(measured, BUDGET, methods=METHODS, seed=1, experts=asked).experts
    assert row.layers == experts_by_layer(
        with_experts(measured, ExpertChoice("random", share=0.5, seed=1)).modules
    )
    with pytest.raises(InvalidOption, match="take one of"):
        compare(measured, methods=["fim", "spectral"], experts=asked)
