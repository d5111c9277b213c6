"""Under autocast the model runs narrower; what is recorded of it does not."""

import pytest
import torch

from fimlora import Settings, measure, measure_streamed
from fimlora.errors import InvalidOption
from support.models import make_batch, tiny
from support.reference import relative_error
from support.streaming import ALL, assert_same, batches_for, quiet, save

__all__ = ["quiet"]  # a fixture of every test here


def bfloat16():
    return torch.autocast("cpu", torch.bfloat16)


def test_energies_are_those_of_what_autocast_gives():
    """Inputs and output gradients seen by plain hooks, multiplied in float64."""
    model, targets = tiny("llama_gqa_lm")
    batch = make_batch("llama_gqa_lm", [9])
    with bfloat16():
        statistics = measure(model, [batch], target_modules=targets, estimator="exact")
    seen = {}

    def see(module, args, output, *, name):
        output.register_hook(lambda g: seen.update({name: (args[0].detach(), g)}))

    handles = [
        model.get_submodule(module.name).register_forward_hook(
            lambda *call, name=module.name: see(*call, name=name)
        )
        for module in statistics.modules
    ]
    with bfloat16():
        logits = model(batch["input_ids"]).logits.float()
        labels = batch["labels"][:, 1:]
        losses = torch.nn.functional.cross_entropy(logits[:, :-1].mT, labels, reduction="none")
        (losses.sum() / (labels != -100).sum()).backward()
    for handle in handles:
        handle.remove()

    assert {g.dtype for _, g in seen.values()} == {torch.bfloat16}
    for module in statistics.modules:
        x, g = (tensor[0].double() for tensor in seen[module.name])
        rows = (g.mT @ x).square().sum(dim=1)
        assert relative_error(statistics.row_energies[module.name], rows) <= 1e-5


@pytest.mark.parametrize("name", ["llama_gqa_lm", "bert_classifier"])
def test_streamed_equals_resident(name, tmp_path):
    """Also what runs between the blocks, and where a block's input has several users."""
    model, targets = tiny(name)
    resident, batches = save(model, tmp_path), batches_for(name)
    options = {"target_modules": targets, **ALL}

    with bfloat16():
        streamed = measure_streamed(tmp_path, batches, Settings(**options))
        wanted = measure(resident, batches, **options)
        assert torch.is_autocast_cache_enabled()

    assert_same(streamed, wanted)
    plain = measure(resident, batches, **options)
    assert any(
        relative_error(plain.row_energies[m], wanted.row_energies[m]) > 1e-4
        for m in wanted.row_energies
    )


def test_inference_mode_is_refused(tmp_path):
    """No graph can be built in it, streamed or not; the message says what is allowed."""
    with torch.inference_mode(), pytest.raises(InvalidOption, match=r"torch\.no_grad\(\)"):
        measure_streamed(tmp_path, [])
