"""EVA's initial weights are those of PEFT's own EVA, and the adapter begins as the base model."""

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from fimlora import allocate, load_plan, measure, score, write_adapter
from fimlora.adapter.initial.choose import initial_weights
from fimlora.numerics.seeded_draws import draw_lora_a
from support.eva import BERT, LLAMA, batches_for, bert, by_peft, by_us, llama

PREFIX = "base_model.model."


@pytest.mark.parametrize(
    ("build", "targets", "by_token"), [(llama, LLAMA, True), (bert, BERT, False)]
)
def test_a_is_that_of_peft_and_b_zero(build, targets, by_token):
    """Of every module that its EVA leaves an adapter, up to the sign of each row."""
    model = build(32, 32)
    theirs = by_peft(model, targets, 8, by_token=by_token)
    statistics = by_us(model, targets, 8, by_token=by_token)
    plan = allocate(score(statistics, "eva"), 8, r_min=0, r_max=16)

    found = initial_weights(plan, "eva", statistics, seed=0)

    assert found.keys() == theirs.keys()
    for name, (A, B) in found.items():
        assert A.shape == theirs[name].shape
        cosines = (A * theirs[name]).sum(dim=1).abs()
        assert cosines.numpy() == pytest.approx(1, abs=1e-5)
        assert B.shape[1] == len(A)
        assert not B.any()


def test_any_allocation_can_have_them(tmp_path):
    """Ranks of fim with A of eva, from one run; stock PEFT loads the base model's function."""
    model, batches = llama(32, 32), batches_for(by_token=True)
    statistics = measure(model, batches, target_modules=LLAMA, record="input_components")
    plan = allocate(score(statistics), 4, r_min=2)
    with torch.no_grad():
        logits = model(**batches[0]).logits

    write_adapter(
        plan, tmp_path / "a", base_model="toy", task_type="CAUSAL_LM", model=model,
        init="eva", statistics=statistics,
    )  # fmt: skip

    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    for module in plan.modules:
        A = tensors[f"{PREFIX}{module.name}.lora_A.weight"].numpy()
        components = statistics.quantities["input_components"][module.name]
        assert np.array_equal(A, components[: plan.ranks[module.name]])
    assert load_plan(tmp_path / "a").provenance["initial"]["starts_as_base"]
    loaded = PeftModel.from_pretrained(model, tmp_path / "a")
    with torch.no_grad():
        assert torch.equal(loaded(**batches[0]).logits, logits)


def test_a_rank_beyond_the_components_starts_as_lora_does():
    """A row of zeros would never train: such rows are drawn."""
    model, batch = bert(32, 32), batches_for(by_token=False)[0]
    statistics = measure(
        model, [batch], target_modules=["pooler.dense"],
        estimator="none", record="input_components",
    )  # fmt: skip
    (module,) = statistics.modules
    plan = allocate(score(statistics, "eva"), 6, r_max=8)

    A, _ = initial_weights(plan, "eva", statistics, seed=5)[module.name]

    n_found = len(statistics.quantities["input_components"][module.name])
    assert n_found == 3  # four examples, centred
    assert torch.equal(A[3:], draw_lora_a(module, rank=6, seed=5)[3:])
    assert A[:3].norm(dim=1).numpy() == pytest.approx(1, abs=1e-6)
