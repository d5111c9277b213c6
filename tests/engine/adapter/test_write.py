"""Written adapters, as stock PEFT understands them."""

import hashlib
import json
import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from fimlora import find_targets, load_plan, write_adapter
from fimlora.errors import InvalidOption
from fimlora.model.targets import head_tensors
from support.adapters import MINIMAL_FIELDS, RANKS, config_of, write
from support.models import make_batch, tiny
from support.peft_models import lora_tensors, planned, resolved, train, updates
from support.plans import plan_of

# How far float32 results of two equivalent adapters may lie apart, relatively.
SAME_UPDATE = 1e-6


@pytest.mark.parametrize("layout", ["B", "C"])
@pytest.mark.parametrize("name", ["llama_gqa_lm", "gpt2_lm"])
def test_weights_load_through_stock_peft(name, layout, tmp_path):
    """No tensor is missing or left over, the base is untouched, and logits stay."""
    model, plan = write(name, tmp_path / "a", layout=layout, weights=True)
    batch = make_batch(name, [5, 3])
    before = {n: p.clone() for n, p in model.named_parameters()}
    logits = model(**batch).logits

    peft_model = PeftModel.from_pretrained(model, tmp_path / "a", is_trainable=True)

    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    loaded = {n.replace(".default", ""): t for n, t in lora_tensors(peft_model).items()}
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[n], t) for n, t in tensors.items())
    assert all(
        torch.equal(before[n.replace(".base_layer", "")], p)
        for n, p in peft_model.get_base_model().named_parameters()
        if ".lora_" not in n
    )
    assert torch.equal(peft_model(**batch).logits, logits)
    if layout == "B":
        assert resolved(peft_model) == planned(plan)
        assert sum(t.numel() for t in tensors.values()) == plan.spent.parameters


@pytest.mark.parametrize("name", ["bert_classifier", "llama_classifier"])
def test_weights_of_a_classifier_hold_its_head(name, tmp_path):
    """PEFT loads no classifier without its head, so the file has it and the logits stay."""
    model, plan = write(name, tmp_path / "a", weights=True)
    batch = make_batch(name, [5, 3])
    logits = model(**batch).logits
    fresh, _ = tiny(name)
    with torch.no_grad():
        for tensor in head_tensors(fresh).values():
            tensor.zero_()

    peft_model = PeftModel.from_pretrained(fresh, tmp_path / "a", is_trainable=True)

    assert resolved(peft_model) == planned(plan)
    assert torch.equal(peft_model.eval()(**batch).logits, logits)


def test_weights_of_a_classifier_without_its_head_are_refused(tmp_path):
    """Such a folder would not load; the error says what is missing."""
    with pytest.raises(InvalidOption, match="needs head"):
        write("bert_classifier", tmp_path / "a", weights=True, head=None)

    assert list(tmp_path.iterdir()) == []


def test_initial_weights_are_pefts_own_distribution(tmp_path):
    """A is uniform within 1 / sqrt(d_in), another seed gives another A, B is zero."""
    write("llama_gqa_lm", tmp_path / "a", weights=True, seed=1)
    write("llama_gqa_lm", tmp_path / "b", weights=True, seed=2)
    first, second = (
        load_file(tmp_path / folder / "adapter_model.safetensors") for folder in "ab"
    )

    for n, tensor in first.items():
        assert tensor.dtype is torch.float32
        if "lora_B" in n:
            assert not tensor.any()
        else:
            bound = tensor.shape[1] ** -0.5
            assert 0.5 * bound < tensor.abs().max() <= bound
            assert not torch.equal(tensor, second[n])


def test_a_damaged_file_is_an_error(tmp_path):
    """Stock PEFT refuses tensors that do not fit the config: nothing is dropped silently."""
    model, _ = write("llama_gqa_lm", tmp_path / "a", weights=True)
    config = config_of(tmp_path / "a")
    config["rank_pattern"] = {k: v + 1 for k, v in config["rank_pattern"].items()}
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config))

    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(model, tmp_path / "a")


def test_layout_c_is_one_rank_without_patterns(tmp_path):
    """Up to the next rank that servers accept; the rest of each matrix is zero."""
    _, plan = write("llama_gqa_lm", tmp_path / "a", ranks=[3, 9, 5], layout="C", weights=True)

    config = config_of(tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")

    assert config.keys() == MINIMAL_FIELDS
    assert (config["r"], config["lora_alpha"]) == (16, 32)
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    for module in plan.modules:
        A = tensors[f"base_model.model.{module.name}.lora_A.weight"]
        assert A.shape == (16, module.d_in)
        assert not A[plan.ranks[module.name] :].any()
        assert A[: plan.ranks[module.name]].any(dim=1).all()


@pytest.mark.parametrize("name", ["llama_gqa_lm", "bert_classifier", "gpt2_lm"])
def test_both_layouts_train_to_the_same_update(name, tmp_path):
    """After 40 AdamW steps the padding is still exactly zero and every delta W is equal.

    In float64: over 40 steps float32 would show how rounding grows, not the layouts.
    """
    batch = make_batch(name, [6, 4, 5])
    models = {}
    for layout in "BC":
        model, plan = write(name, tmp_path / layout, layout=layout, weights=True)
        models[layout] = PeftModel.from_pretrained(
            model.double(), tmp_path / layout, is_trainable=True
        )
        train(models[layout], batch, steps=40)

    narrow, padded = (updates(models[layout]) for layout in "BC")
    for module in plan.modules:
        difference = (narrow[module.name] - padded[module.name]).norm()
        assert difference <= SAME_UPDATE * narrow[module.name].norm()
        assert narrow[module.name].any()
    for n, tensor in lora_tensors(models["C"]).items():
        rank = plan.ranks[n.removeprefix("base_model.model.").split(".lora_")[0]]
        padding = tensor[rank:] if "lora_A" in n else tensor[:, rank:]
        assert not padding.any()


def test_equal_factors_give_equal_updates_in_both_layouts(tmp_path):
    """The padded form of a trained adapter is the same change of the weights, and so is
    the merged model.
    """
    batch = make_batch("llama_gqa_lm", [6, 4, 5])
    model, plan = write("llama_gqa_lm", tmp_path / "B", weights=True)
    narrow = PeftModel.from_pretrained(model, tmp_path / "B", is_trainable=True)
    train(narrow, batch, steps=5)
    model, _ = write("llama_gqa_lm", tmp_path / "C", layout="C", weights=True)
    padded = PeftModel.from_pretrained(model, tmp_path / "C")
    trained = lora_tensors(narrow)
    with torch.no_grad():
        for n, p in padded.named_parameters():
            if ".lora_" in n:
                rows, columns = trained[n].shape
                p[:rows, :columns] = trained[n]

    ours, theirs = updates(narrow), updates(padded)
    before = {n: model.get_submodule(n).base_layer.weight.clone() for n in plan.ranks}
    merged = padded.merge_and_unload()
    for n in plan.ranks:
        assert (ours[n] - theirs[n]).norm() <= SAME_UPDATE * ours[n].norm()
        change = merged.get_submodule(n).weight - before[n]
        assert torch.allclose(change, ours[n], atol=1e-6)


def test_the_folder_holds_the_plan_and_a_picture(tmp_path):
    """The plan can be read back from the folder, equal to the one that was written."""
    model, targets = tiny("llama_gqa_lm")
    plan = plan_of(find_targets(model, targets), RANKS)

    files = write_adapter(plan, tmp_path / "x" / "a", base_model="m", task_type="CAUSAL_LM")

    assert sorted(files) == ["adapter_config.json", "rank_map.json", "rank_map.svg"]
    assert all(path.is_file() for path in files.values())
    assert load_plan(tmp_path / "x" / "a") == plan
    assert load_plan(files["rank_map.json"]) == plan
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["a"]


SCRIPT = """
import sys
from fimlora.plan import TargetModule
from fimlora import write_adapter
from support.plans import plan_of
modules = tuple(TargetModule(f"layers.{i}.{k}", 8, 8) for i in range(9) for k in "qkvo")
plan = plan_of(modules, [1, 5, 2])
names = {m.name for m in modules}
write_adapter(plan, sys.argv[1], base_model="m", task_type=None, weights=True, module_names=names)
"""


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(tmp_path):
    """Whatever the hash seed of the process, every file has the same digest."""
    digests = []
    for hash_seed in "12":
        folder = tmp_path / hash_seed
        environment = {"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": hash_seed}
        subprocess.run([sys.executable, "-c", SCRIPT, folder], env=environment, check=True)
        digests.append(
            {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}
        )

    assert len(digests[0]) == 4
    assert digests[0] == digests[1]


def test_an_adapter_is_replaced_only_on_request(tmp_path):
    """Without ``overwrite`` the first one stays; with it nothing of the first is left."""
    write("llama_gqa_lm", tmp_path / "a", weights=True)
    with pytest.raises(InvalidOption, match="overwrite=True"):
        write("llama_gqa_lm", tmp_path / "a", ranks=[2])
    assert config_of(tmp_path / "a")["r"] == 8

    write("llama_gqa_lm", tmp_path / "a", ranks=[2], overwrite=True)

    assert config_of(tmp_path / "a")["r"] == 2
    assert not (tmp_path / "a" / "adapter_model.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    """Not even ``overwrite`` removes files that are no adapter."""
    (tmp_path / "thesis.tex").write_text("years of work")

    with pytest.raises(InvalidOption, match=r"thesis\.tex"):
        write("llama_gqa_lm", tmp_path, overwrite=True)

    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_failure_leaves_nothing_behind(tmp_path):
    """An option that is refused late, and a disk that is full, leave no folder."""
    with pytest.raises(InvalidOption, match="TEXT"):
        write("llama_gqa_lm", tmp_path / "a", task_type="TEXT")
    with pytest.raises(InvalidOption, match="layout='A'"):
        write("llama_gqa_lm", tmp_path / "a", layout="A")
    with pytest.raises(InvalidOption, match="rank 0"):
        write("llama_gqa_lm", tmp_path / "a", ranks=[0])

    assert list(tmp_path.iterdir()) == []
