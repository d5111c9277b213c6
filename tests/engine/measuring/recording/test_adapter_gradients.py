"""Gradients of a trained adapter's A and B, against autograd through PEFT, one example at a time."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from fimlora import find_targets, measure, measure_streamed, score
from fimlora.errors import InvalidOption, UnsupportedModule
from fimlora.measuring.recording.adapter_gradients import _squares
from fimlora.measuring.settings import Settings
from support.models import TINY_MODELS, make_batch, tiny
from support.reference import relative_error
from support.trained import examples_of, gates_on, layers_of, trained_adapter

LENGTHS = ((30, 9, 7, 3), (5, 12, 4))
RECORD = "adapter_gradients"


def batches_for(name):
    return [make_batch(name, lengths, seed=i) for i, lengths in enumerate(LENGTHS)]


def by_autograd(model, batches):
    """Squares by rank of A and of B, and gate gradients, summed over examples one by one."""
    squares = {n: torch.zeros(2, m.r["default"]).double() for n, m in layers_of(model).items()}
    gates = {n: torch.zeros(len(s[0])).double() for n, s in squares.items()}
    with gates_on(model) as gate_of:
        for example in examples_of(batches):
            model.zero_grad()
            model(**example).loss.backward()
            for name, layer in layers_of(model).items():
                A, B = (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
                for i, (grad, dim) in enumerate(((A.grad, 1), (B.grad, 0))):
                    if grad is not None:
                        squares[name][i] += grad.double().square().sum(dim=dim)
                if gate_of[name].grad is not None:
                    gates[name] += gate_of[name].grad.double()
                gate_of[name].grad = None
    model.zero_grad()
    return squares, gates


@pytest.mark.parametrize("name", sorted(TINY_MODELS))
def test_they_are_those_of_autograd_example_by_example(name):
    """A, B and explicit gates on every rank of a real PEFT model, to 1e-5."""
    model, batches = trained_adapter(name), batches_for(name)

    found = measure(model, batches, record=RECORD, estimator="exact").quantities

    squares, gates = by_autograd(model, batches)
    assert found.keys() == {"adapter_gradients", "adapter_gates"}
    assert found["adapter_gradients"].keys() == squares.keys()
    for module in squares:
        assert relative_error(found["adapter_gradients"][module], squares[module]) < 1e-5
        # Signed sums may nearly cancel, so against what they could be.
        most = (squares[module].sum() ** 0.5).item()
        off = torch.as_tensor(found["adapter_gates"][module]) - gates[module]
        assert off.abs().max() < 1e-5 * max(most, gates[module].abs().max())


@pytest.mark.parametrize("name", ["bert_classifier", "llama_gqa_lm"])
def test_the_score_is_the_mean_squared_gradient_of_a_parameter(name):
    """Equation 4 over all entries of A and of B; by default wherever they were recorded."""
    model, batches = trained_adapter(name), batches_for(name)

    statistics = measure(model, batches, record=RECORD, estimator="exact")
    found = score(statistics)

    totals = dict.fromkeys(layers_of(model), 0.0)
    for example in examples_of(batches):
        model.zero_grad()
        model(**example).loss.backward()
        for n, layer in layers_of(model).items():
            A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            both = torch.cat([A.grad.flatten(), B.grad.flatten()]).double()
            totals[n] += both.square().mean().item()
    n_examples = sum(map(len, LENGTHS))
    assert found.provenance["estimator"] == "adapter"
    for n, total in totals.items():
        assert found.by_module[n] == pytest.approx(total / n_examples, rel=1e-5)
    assert score(statistics, estimator="exact").by_module != found.by_module


def test_micro_batches_and_parts_change_nothing():
    """One example at a time, or the two batches merged, to rounding."""
    model, batches = trained_adapter("llama_gqa_lm"), batches_for("llama_gqa_lm")
    whole = measure(model, batches, record=RECORD, estimator="exact")

    by_one = measure(model, batches, record=RECORD, estimator="exact", micro_batch_size=1)
    first, second = (measure(model, [b], record=RECORD, estimator="exact") for b in batches)
    merged = first.merge(second)

    for other in (by_one, merged):
        for group, arrays in whole.quantities.items():
            for name, values in arrays.items():
                assert relative_error(other.quantities[group][name], values) < 1e-5


def test_null_and_halves_are_kept_of_them_too():
    """Halves add up to the run; under other labels they are other ones."""
    model, batches = trained_adapter("bert_classifier"), batches_for("bert_classifier")

    found = measure(model, batches, record=RECORD, estimator="exact", null=True, halves=True)

    name = found.modules[0].name
    whole, null, *halves = (
        part.quantities["adapter_gradients"][name]
        for part in (found, found.null, *found.halves)
    )
    assert relative_error(sum(halves), whole) < 1e-6
    assert relative_error(null, whole) > 1e-2
    assert score(found.null).by_module != score(found).by_module


def test_a_run_that_was_cut_off_goes_on_to_the_same_bits(tmp_path):
    """Also of these sums."""
    model, batches = trained_adapter("bert_classifier"), batches_for("bert_classifier")
    options = {"record": RECORD, "estimator": "exact", "n_batches": 2}
    whole = measure(model, batches, **options)

    def stop(done, expected):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(model, batches, progress_file=tmp_path / "p", on_batch=stop, **options)
    resumed = measure(model, batches, progress_file=tmp_path / "p", **options)

    assert resumed.to_bytes() == whole.to_bytes()


def test_the_model_is_as_it_was():
    """Values, gradients, modes and the random state."""
    model, batches = trained_adapter("bert_classifier").train(), batches_for("bert_classifier")
    model(**batches[0]).loss.backward()
    before = {n: (p.clone(), p.grad, p.requires_grad) for n, p in model.named_parameters()}
    state = torch.get_rng_state()

    measure(model, batches, record=RECORD)

    for n, p in model.named_parameters():
        value, grad, required = before[n]
        assert torch.equal(p, value)
        assert p.grad is grad
        assert p.requires_grad is required
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())


def test_bfloat16_is_multiplied_in_float32():
    """Against the same adapter in float32, to what bfloat16 inputs allow."""
    batches = batches_for("llama_gqa_lm")
    wide, narrow = (trained_adapter("llama_gqa_lm", dtype=d) for d in (None, torch.bfloat16))
    found = [measure(m, batches, record=RECORD, estimator="exact") for m in (wide, narrow)]

    for name in layers_of(wide):
        of_wide, of_narrow = (f.quantities["adapter_gradients"][name] for f in found)
        assert relative_error(of_narrow, of_wide) < 0.1


def test_squares_are_the_same_whatever_is_held_at_once():
    """Some examples at a time, as where a batch has more entries than are held."""
    draws = torch.Generator().manual_seed(0)
    narrow, wide = (torch.randn(5, 7, n, generator=draws) for n in (3, 11))

    wanted = sum(
        (n.double().T @ w.double()).square().sum(1) for n, w in zip(narrow, wide, strict=True)
    )

    for most in (1, 70, 10**6):
        assert relative_error(_squares(narrow, wide, max_entries=most), wanted) < 1e-6


@pytest.mark.parametrize("change", ["none", "two", "merged", "some"])
def test_without_one_plain_adapter_on_every_target_it_is_refused(change):
    """By name: whose gradients would be meant?"""
    model, batches = trained_adapter("bert_classifier"), batches_for("bert_classifier")
    options = {}
    if change == "none":
        model.base_model.disable_adapter_layers()
    elif change == "two":
        model.add_adapter(
            "other", LoraConfig(target_modules=["query", "key", "value", "dense"])
        )
        model.base_model.set_adapter(["default", "other"])
    elif change == "merged":
        model.merge_adapter()
    else:
        model = get_peft_model(tiny("bert_classifier")[0], LoraConfig(target_modules=["query"]))
        options["target_modules"] = ["query", "key"]

    with pytest.raises((InvalidOption, UnsupportedModule), match="adapter"):
        measure(model, batches, record=RECORD, **options)


def test_dropout_and_streaming_are_refused_with_the_reason(tmp_path):
    """The adapter's input has a dropout of its own; a checkpoint has no adapter."""
    model, batches = trained_adapter("bert_classifier"), batches_for("bert_classifier")

    with pytest.raises(InvalidOption, match="train_mode=True draws a dropout of its own"):
        measure(model, batches, record=RECORD, train_mode=True)
    with pytest.raises(InvalidOption, match="blocks carry no adapter"):
        measure_streamed(tmp_path, batches, Settings(record=RECORD))


def test_only_a_mean_is_known_of_them():
    """Largest entries are not recorded."""
    model, batches = trained_adapter("bert_classifier"), batches_for("bert_classifier")
    statistics = measure(model, batches, record=RECORD)

    with pytest.raises(InvalidOption, match="aggregation='max': of a trained adapter"):
        score(statistics, aggregation="max")
    assert len(find_targets(model)) == len(score(statistics).by_module)
