"""Plans that train some experts, in stock PEFT: the others stay as they are, to the last bit."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from fimlora import (
    allocate,
    apply_fim_ranks,
    load_plan,
    measure,
    score,
    select_experts,
    verify_adapter,
    write_adapter,
)
from fimlora.adapter.exports import export
from fimlora.adapter.stacked import per_expert
from fimlora.adapter.text_files import rank_map
from fimlora.adapter.verifying.compare import compare
from fimlora.adapter.verifying.intended import read_intended
from fimlora.adapter.verifying.live import see_model
from fimlora.errors import InvalidOption
from fimlora.model.experts.wrapped import carriers_of_parameters
from support.experts import KINDS, LINEAR, mixture, mixture_batches

# PEFT says so of every key of a parameter, and it is wrong.
pytestmark = pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match")
TARGETS = {"target_modules": [LINEAR], "target_parameters": "all", "estimator": "exact"}


def planned(name):
    """A plan for the most routed half of a mixture's experts, and the mixture."""
    base = mixture(name)
    statistics = measure(base, mixture_batches(), **TARGETS)
    some = select_experts(statistics, "routed", share=0.5)
    return base, allocate(score(some), 3, r_min=1, r_max=6)


def written(base, plan, folder, **options):
    """Write its folder."""
    fields = {"base_model": None, "task_type": "CAUSAL_LM", "model": base} | options
    write_adapter(plan, folder, **fields)
    return folder


def loaded(base, folder):
    """The adapter as stock PEFT loads it to train."""
    return PeftModel.from_pretrained(copy.deepcopy(base), folder, is_trainable=True)


def pairs_of(model, module):
    """A and B of each expert of a parameter."""
    layer = carriers_of_parameters(model.get_base_model())[module.name]
    A, B = (getattr(layer, f"lora_{x}")["default"].weight.detach() for x in "AB")
    return per_expert(A, B, module.n_experts)


def trained(model, *, steps=6):
    """Train it by AdamW with weight decay, as stock trainers do."""
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1
    )
    model.train()
    for _ in range(steps):
        for batch in mixture_batches():
            optimizer.zero_grad()
            model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    return model.eval()


@pytest.mark.parametrize("name", ["mixtral", *KINDS])
def test_stock_peft_trains_the_selected_experts_alone(name, tmp_path):
    """After AdamW with decay the others are zero still; saved, loaded and merged they are untouched."""
    base, plan = planned(name)
    fused = [m for m in plan.modules if m.n_experts is not None]
    assert all(0 < len(m.experts) < m.n_experts for m in fused)
    model = loaded(base, written(base, plan, tmp_path / "a"))
    batch = mixture_batches()[0]
    before = model(**batch).loss.item()

    trained(model)

    assert model(**batch).loss.item() < before
    model.save_pretrained(tmp_path / "trained", save_embedding_layers=False)
    again = loaded(base, tmp_path / "trained")
    assert torch.equal(again.eval()(**batch).logits, model(**batch).logits)
    n_moved = 0
    for module in fused:
        for expert, (a, b) in enumerate(pairs_of(again, module)):
            assert bool(a.any()) == (expert in module.experts)
            assert expert in module.experts or not b.any()
            n_moved += bool(b.any())
    assert n_moved > len(fused) / 2  # an expert that no token reaches keeps its zeros in B
    merged = again.merge_and_unload()
    for module in fused:
        old, new = (m.get_parameter(module.name).detach() for m in (base, merged))
        for expert in range(module.n_experts):
            if expert not in module.experts:
                assert torch.equal(old[expert], new[expert])
        assert not torch.equal(old, new)
    found = verify_adapter(tmp_path / "trained", plan)
    assert not found.faults
    assert any("experts are selected" in note for note in found.notes)


def test_the_folder_says_what_trains_and_what_is_held(tmp_path):
    """In both layouts: weights are written unasked, the plan's first warning says to begin from them."""
    base, plan = planned("mixtral")
    for layout in "BC":
        folder = written(base, plan, tmp_path / layout, layout=layout)
        model = loaded(base, folder)
        n_held = sum(p.numel() for n, p in model.named_parameters() if ".lora_" in n)
        told = json.loads((folder / "rank_map.json").read_text())
        assert told["adapter"]["trainable_parameters"] == n_held
        assert told["spent"]["parameters"] == plan.spent.parameters < n_held
        assert told["warnings"][0]["code"] == "experts_selected"
        assert load_plan(folder).modules == plan.modules
        for module in (m for m in plan.modules if m.n_experts is not None):
            for expert, (a, b) in enumerate(pairs_of(model, module)):
                n_rows = int(a.any(dim=1).sum())
                assert n_rows == (plan.ranks[module.name] if expert in module.experts else 0)
                assert not b.any()
        assert not verify_adapter(folder, folder).faults
    assert rank_map(plan)["adapter"]["layout"] == "B"


def test_an_adapter_that_trains_other_experts_is_found(tmp_path):
    """On a model made of the config alone, and in a file with another expert's values."""
    base, plan = planned("mixtral")
    folder = written(base, plan, tmp_path / "a")
    intended = read_intended(folder)
    assert not compare(intended, see_model(loaded(base, folder), intended)).faults

    anew = get_peft_model(copy.deepcopy(base), LoraConfig.from_pretrained(folder))
    faults = compare(intended, see_model(anew, intended)).faults
    assert {f.code for f in faults} == {"experts"}
    assert all("the plan trains 2 of 4 experts" in f.message for f in faults)

    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    module = next(m for m in plan.modules if m.n_experts is not None)
    key = next(k for k in tensors if "experts" in k and k.endswith("lora_B.weight"))
    other = min({*range(4)} - {*module.experts})
    tensors[key][0, other] = 1e-3
    save_file(tensors, file, metadata={"format": "pt"})
    assert "experts" in {f.code for f in verify_adapter(folder, folder).faults}

    tensors[key][0, other] = 0
    a = key.replace("lora_B", "lora_A")
    rank, first = len(tensors[a]) // 4, module.experts[0]
    tensors[a][first * rank : (first + 1) * rank] = 0
    save_file(tensors, file, metadata={"format": "pt"})
    messages = [f.message for f in verify_adapter(folder, folder).faults]
    assert any("the plan trains it" in message for message in messages)

    file.unlink()
    found = verify_adapter(folder, folder)
    assert not found.faults
    assert any("said by weights, that were not compared" in note for note in found.notes)


def test_ranks_that_are_changed_wake_no_expert(tmp_path):
    """An expert of zeros gets new rows of zeros when a live adapter grows."""
    base, plan = planned("mixtral")
    model = trained(loaded(base, written(base, plan, tmp_path / "a")), steps=1)

    apply_fim_ranks(model, mixture_batches(), budget=8, r_min=7, r_max=12)

    for module in (m for m in plan.modules if m.n_experts is not None):
        for expert, (a, b) in enumerate(pairs_of(model, module)):
            if expert not in module.experts:
                assert not a.any()
                assert not b.any()
            else:
                assert a.any(dim=1).all()


def test_what_loses_the_selection_is_refused_by_name(tmp_path):
    """Configs without weights, and weights that are other than LoRA's own."""
    base, plan = planned("mixtral")
    config = json.loads(
        (written(base, plan, tmp_path / "a") / "adapter_config.json").read_text()
    )
    for taken in ("ms-swift", "llama-factory", "vllm"):
        assert "the weights of the folder alone say which" in export(plan, config, taken).text
    for refused in ("peft", "layout-c", "trl"):
        with pytest.raises(InvalidOption, match="from which all experts train"):
            export(plan, config, refused)
    for init in ("zeros", "eva", "lora-one"):
        with pytest.raises(InvalidOption, match=r"take that, or select no experts"):
            written(base, plan, tmp_path / init, init=init)
        assert not (tmp_path / init).exists()
