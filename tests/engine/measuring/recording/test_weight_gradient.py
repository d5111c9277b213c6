"""Weights times their mean gradients, against full gradients of one example after the other."""

import pytest
import torch
from accelerate import dispatch_model
from torch import nn
from torch.nn import Parameter

from fimlora import Settings, find_targets, measure, measure_folder, measure_streamed
from fimlora.errors import OutOfMemory, UnsupportedModule
from fimlora.measuring.recording.mean_gradient import MeanGradient
from fimlora.measuring.recording.quantities import quantities_for
from fimlora.statistics.options import Executor
from support.models import TINY_MODELS, make_batch, tiny
from support.reference import relative_error, weight_gradients_by_example
from support.statistics import assert_identical
from support.streaming import save

LENGTHS = ([31, 9, 7, 3], [5, 18], [4, 2, 30])
RECORD = "weight_gradient"


def batches_for(name):
    return [make_batch(name, lengths, seed=i) for i, lengths in enumerate(LENGTHS)]


def importance_by_autograd(model, batches, modules):
    """Mean of |W * G| over entries, one backward pass per example through all of the model."""
    gradients = weight_gradients_by_example(model, batches, modules)
    found = {}
    for module in modules:
        W = model.get_submodule(module.name).weight.detach().double()
        G = gradients[module.name].double().mean(dim=0)
        W = W.T if module.fan_in_fan_out else W
        entries = [
            abs(w * g) for w, g in zip(W.flatten().tolist(), G.flatten().tolist(), strict=True)
        ]
        found[module.name] = sum(entries) / len(entries)
    return found


@pytest.mark.parametrize("name", sorted(TINY_MODELS))
@pytest.mark.parametrize("size", [None, 3])
def test_it_is_that_of_the_gradient_over_all_examples(name, size):
    """Summed before the absolute value is taken, whatever the micro-batches."""
    model, targets = tiny(name, torch.float64)
    batches = batches_for(name)
    modules = find_targets(model, targets)
    wanted = importance_by_autograd(model, batches, modules)

    found = measure(
        model, batches, target_modules=targets, record=RECORD, micro_batch_size=size
    ).quantities[RECORD]

    assert found.keys() == wanted.keys()
    for module, value in wanted.items():
        assert found[module].shape == (1,)
        assert found[module].item() == pytest.approx(value, rel=1e-9)


def test_halves_and_null_have_their_own(tmp_path):
    """Every other batch, and the same passes under other labels."""
    model, targets = tiny("bert_classifier", torch.float64)
    batches = batches_for("bert_classifier")
    modules = find_targets(model, targets)

    found = measure(
        model, batches, target_modules=targets, record=RECORD, null=True, halves=True
    )

    first, second = found.halves
    for half, own in ((first, batches[::2]), (second, batches[1::2])):
        wanted = importance_by_autograd(model, own, modules)
        values = [half.quantities[RECORD][name].item() for name in wanted]
        assert relative_error(values, [*wanted.values()]) <= 1e-9
    assert any(
        found.null.quantities[RECORD][m.name] != found.quantities[RECORD][m.name]
        for m in modules
    )


def test_the_gradient_is_summed_once_for_all_that_read_it():
    """Spectra beside it cost no second accumulator."""
    model, targets = tiny("llama_gqa_lm")
    settings = Settings(record=("spectra", RECORD))
    modules = find_targets(model, targets)

    quantities = quantities_for(settings, modules, torch.device("cpu"))

    assert sum(isinstance(each, MeanGradient) for each in quantities) == 1


def test_gradients_that_may_not_be_whole_are_refused_resident_and_streamed_instead(tmp_path):
    """By name and with the bytes; left to itself, the model is streamed, to the same numbers."""
    model, targets = tiny("llama_gqa_lm")
    resident, batches = save(model, tmp_path), batches_for("llama_gqa_lm")
    needed = 4 * sum(m.d_in * m.d_out for m in find_targets(resident, targets))
    options = {"target_modules": targets, "record": ("spectra", RECORD)}
    little = Settings(spectra_bytes=needed - 1, **options)

    with pytest.raises(
        OutOfMemory, match=rf"'weight_gradient' keeps .*\({needed:,} bytes\).*stream"
    ):
        measure(resident, batches, spectra_bytes=needed - 1, **options)
    wanted = measure(resident, batches, spectra_bytes=needed, **options)

    assert_identical(measure_streamed(tmp_path, batches, little), wanted)
    chosen = measure_folder(tmp_path, batches, little)
    assert chosen.execution.executor is Executor.STREAMED
    assert_identical(chosen, wanted)


def test_weights_that_lie_elsewhere_are_fetched(tmp_path):
    """From disk, where accelerate keeps them, to the last bit."""
    name = "llama_gqa_lm"
    batches, options = batches_for(name), {"target_modules": "all-linear", "record": RECORD}
    wanted = measure(tiny(name)[0], batches, **options)
    places = {"model.embed_tokens": "cpu", "model.layers": "disk", "lm_head": "cpu"}
    rest = {"model.norm": "cpu", "model.rotary_emb": "cpu"}
    model = dispatch_model(
        tiny(name)[0], places | rest, main_device="cpu", offload_dir=tmp_path, force_hooks=True
    )

    assert_identical(measure(model, batches, **options), wanted)


class FourBit(nn.Linear):
    """A linear map that computes by a weight that it does not show."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features)
        self.real = linear
        packed = torch.zeros(linear.weight.numel() // 2, 1, dtype=torch.uint8)
        self.weight = Parameter(packed, requires_grad=False)

    def forward(self, x):
        return self.real(x)


class Subclassed(torch.Tensor):
    """A quantised tensor that says it has the dtype it stands for."""


@pytest.mark.parametrize("kind", ["packed", "a tensor class of its own"])
def test_quantised_weights_are_refused_before_anything_runs(kind):
    """The record and the module are named; without it, such a model is measured."""
    model, _ = tiny("bert_classifier")
    layer = model.bert.encoder.layer[1].attention.self
    if kind == "packed":
        layer.key = FourBit(layer.key)
    else:
        weight = layer.key.weight.detach().as_subclass(Subclassed)
        layer.key.weight = Parameter(weight, requires_grad=False)
    handle = model.register_forward_pre_hook(lambda *args: pytest.fail("the model ran"))
    batches = batches_for("bert_classifier")

    with pytest.raises(UnsupportedModule, match=r"'weight_gradient'.*layer\.1.*key.*quantised"):
        measure(model, batches, target_modules=["query", "key"], record=RECORD)

    handle.remove()
    measure(model, batches, target_modules=["query"], record=RECORD)
