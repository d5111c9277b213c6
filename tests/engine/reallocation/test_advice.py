"""Prune and grow: importance by autograd on explicit gates and by a slow loop, and what follows."""

import copy

import numpy as np
import pytest
import torch

from fimlora import advise_prune_and_grow, measure
from fimlora.errors import EmptyCalibration, InvalidOption, NoLabelledExample
from fimlora.reallocation.advice import first_order_importance, prune_and_grow
from support.models import make_batch
from support.trained import examples_of, gates_on, layers_of, trained_adapter

NAMES = ["bert_classifier", "llama_gqa_lm", "gpt2_lm"]
LENGTHS = ((30, 9, 7, 3), (5, 12, 4))


def batches_for(name):
    return [make_batch(name, lengths, seed=i) for i, lengths in enumerate(LENGTHS)]


def mean_loss(model, batches):
    """One example after the other, by the model itself."""
    with torch.no_grad():
        return np.mean([model(**example).loss.item() for example in examples_of(batches)])


def with_gates(model, batches, gates):
    """The mean loss with B's columns multiplied, on a copy."""
    model = copy.deepcopy(model)
    for name, layer in layers_of(model).items():
        layer.lora_B["default"].weight.data *= torch.tensor(gates[name], dtype=torch.float32)
    return mean_loss(model, batches)


@pytest.mark.parametrize("name", NAMES)
def test_first_order_importance_is_the_gradient_of_explicit_gates(name):
    """Gates that autograd sees, through a real PEFT model, one example after the other."""
    model, batches = trained_adapter(name), batches_for(name)

    found = advise_prune_and_grow(model, batches, 2).importance

    with gates_on(model) as gates:
        losses = torch.stack([model(**e).loss for e in examples_of(batches)])
        losses.mean().backward()
    assert found.keys() == gates.keys()
    most = max(gate.grad.abs().max().item() for gate in gates.values())
    for module, gate in gates.items():
        np.testing.assert_allclose(
            found[module], -gate.grad.numpy(), rtol=1e-4, atol=1e-5 * most
        )


def test_first_order_is_what_a_small_step_of_the_gate_shows():
    """Finite differences of the mean loss in float64."""
    model = trained_adapter("bert_classifier", dtype=torch.float64)
    batches = batches_for("bert_classifier")
    found = advise_prune_and_grow(model, batches, 2).importance

    def loss_at(name, k, value):
        model_ = copy.deepcopy(model)
        layers_of(model_)[name].lora_B["default"].weight.data[:, k] *= value
        return mean_loss(model_, batches)

    for name in [*found][:3]:
        for k in range(len(found[name])):
            slope = (loss_at(name, k, 1 + 1e-4) - loss_at(name, k, 1 - 1e-4)) / 2e-4
            assert found[name][k] == pytest.approx(-slope, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("micro_batch_size", [None, 1])
def test_ablation_is_a_slow_loop(micro_batch_size):
    """S(M) - S(M without i) + S(M with only i), written out on copies."""
    name = "bert_classifier"
    model, batches = trained_adapter(name, (2, 1)), batches_for(name)
    before = {n: p.clone() for n, p in model.named_parameters()}

    found = advise_prune_and_grow(
        model, batches, 2, exact=True, micro_batch_size=micro_batch_size
    ).importance

    ones = {n: np.ones(m.r["default"]) for n, m in layers_of(model).items()}
    whole = mean_loss(model, batches)
    for module, values in found.items():
        for k in range(len(values)):
            without = {n: g.copy() for n, g in ones.items()}
            without[module][k] = 0
            alone = {n: 0 * g for n, g in ones.items()}
            alone[module][k] = 1
            wanted = (
                -whole + with_gates(model, batches, without) - with_gates(model, batches, alone)
            )
            assert values[k] == pytest.approx(wanted, abs=2e-6)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_the_least_important_are_pruned_and_whole_modules_grow():
    """Over all modules, one rank left each; the sum of ranks stays."""
    importance = {
        "a": np.array([5.0, -1.0, 0.1]),
        "b": np.array([-3.0, -2.0]),
        "c": np.array([9.0, 8.0]),
        "d": np.array([7.0, 6.0]),
    }

    found = prune_and_grow(
        importance, 3, method="ablation", highest=dict.fromkeys(importance, 9)
    )

    assert found.pruned == {"b": (0,), "a": (1, 2)}  # b keeps its second, though it is worse
    assert found.grown == {"c": 2, "d": 1}
    assert found.ranks == {"a": 1, "b": 1, "c": 4, "d": 3}
    assert sum(found.ranks.values()) == sum(map(len, importance.values()))


@pytest.mark.parametrize(
    ("n", "message"), [(0, "from 1 to 3"), (4, "from 1 to 3"), (3, "none is left to grow")]
)
def test_what_cannot_be_pruned_is_refused(n, message):
    """With how many could be."""
    with pytest.raises(InvalidOption, match=message):
        prune_and_grow(
            {"a": np.arange(3.0), "b": np.arange(2.0)},
            n,
            method="ablation",
            highest={"a": 9, "b": 9},
        )


def test_no_module_grows_beyond_its_smaller_side():
    """What one has no room for goes to the next; where none has room, it is refused."""
    importance = {"a": np.array([-3.0, -2.0, -1.0]), "b": np.array([9.0]), "c": np.array([7.0])}

    found = prune_and_grow(importance, 2, method="ablation", highest={"a": 8, "b": 1, "c": 3})

    assert found.grown == {"c": 2}
    assert found.ranks == {"a": 1, "b": 1, "c": 3}
    with pytest.raises(InvalidOption, match="can grow by 1 in all"):
        prune_and_grow(importance, 2, method="ablation", highest={"a": 8, "b": 1, "c": 2})


def test_advice_knows_the_sides_of_a_model():
    """Keys and values have 12 outputs: four modules of rank 1 have room for 11 more each."""
    model = trained_adapter("llama_gqa_lm", (24, 1, 1, 24, 24, 24, 24))

    with pytest.raises(InvalidOption, match="can grow by 44 in all"):
        advise_prune_and_grow(model, batches_for("llama_gqa_lm"), 200)


def test_statistics_without_gates_and_batches_without_labels_are_refused():
    """By name."""
    model, batches = trained_adapter("bert_classifier"), batches_for("bert_classifier")

    with pytest.raises(InvalidOption, match="hold no adapter_gradients"):
        first_order_importance(measure(model, batches))
    with pytest.raises(EmptyCalibration, match="no batch"):
        advise_prune_and_grow(model, [], 1, exact=True)
    unlabelled = [b | {"labels": torch.full_like(b["labels"], -100)} for b in batches]
    with pytest.raises(NoLabelledExample):
        advise_prune_and_grow(model, unlabelled, 1, exact=True)
