"""Written adapters, as stock PEFT understands them."""

import hashlib
import json
import re
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

from fimlora import find_targets, load_plan, write_adapter
from fimlora.adapter.config import rank_patterns, target_names
from fimlora.adapter.read import read_adapter_config
from fimlora.errors import InvalidAdapter, InvalidOption, UnsupportedModule
from fimlora.model.targets import head_tensors
from fimlora.plan import TargetModule
from support.models import TINY_MODELS, make_batch, tiny
from support.peft_models import (
    lora_parameters,
    lora_tensors,
    planned,
    resolved,
    train,
    updates,
)
from support.plans import plan_of

RANKS = [3, 8, 1, 5]
# How far float32 results of two equivalent adapters may lie apart, relatively.
SAME_UPDATE = 1e-6
MINIMAL_FIELDS = {
    *("peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha"),
    *("target_modules", "lora_dropout", "bias", "rank_pattern", "alpha_pattern"),
    *("inference_mode", "init_lora_weights", "use_rslora", "fan_in_fan_out"),
    "modules_to_save",
}


@pytest.fixture(params=sorted(TINY_MODELS))
def name(request):
    return request.param


def task_of(name):
    return "CAUSAL_LM" if TINY_MODELS[name].is_causal_lm else "SEQ_CLS"


def write(name, folder, *, ranks=RANKS, scale=2, **options):
    """Write a plan for a tiny model; returns the model and the plan."""
    model, targets = tiny(name)
    plan = plan_of(find_targets(model, targets), ranks, scale=scale)
    names = [n for n, _ in model.named_modules()]
    head = head_tensors(model)
    options = {"task_type": task_of(name), "module_names": names, "head": head} | options
    write_adapter(plan, folder, base_model="org/model", **options)
    return model, plan


def config_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def attach(model, folder):
    """A trainable adapter from the config alone."""
    config = LoraConfig.from_pretrained(folder)
    model.name_or_path = config.base_model_name_or_path  # as a downloaded model has it
    return get_peft_model(model, config)


# --- layout B ----------------------------------------------------------------------------


def test_peft_resolves_the_plan(name, tmp_path):
    """Rank, alpha and scale of every module, and the parameter count, are the plan's."""
    model, plan = write(name, tmp_path / "a")

    peft_model = attach(model, tmp_path / "a")

    assert resolved(peft_model) == planned(plan)
    assert lora_parameters(peft_model) == plan.spent.parameters


def test_the_config_is_the_minimal_one(name, tmp_path):
    """Fifteen fields, plain sorted names, integer alphas, one scale, nothing inherited."""
    _, plan = write(name, tmp_path / "a")

    config = config_of(tmp_path / "a")

    assert config.keys() == MINIMAL_FIELDS
    assert (config["r"], config["lora_alpha"]) == (8, 16)
    assert config["rank_pattern"].keys() == config["alpha_pattern"].keys()
    for key, rank in config["rank_pattern"].items():
        assert key in plan.ranks  # hence no prefix, no escapes, no anchors
        assert type(rank) is int
        assert 1 <= rank < config["r"]
        assert type(config["alpha_pattern"][key]) is int
        assert config["alpha_pattern"][key] == 2 * rank
    assert set(plan.ranks) - config["rank_pattern"].keys() == {
        n for n, r in plan.ranks.items() if r == 8
    }
    assert config["target_modules"] == sorted(config["target_modules"])
    assert config["modules_to_save"] is None
    assert config["inference_mode"] is False
    assert config["init_lora_weights"] is True


def test_each_key_matches_one_target_by_pefts_rule(name, tmp_path):
    """Sorted as PEFT sorts on saving, no key overlaps another, so order means nothing."""
    _, plan = write(name, tmp_path / "a")

    for key in config_of(tmp_path / "a")["rank_pattern"]:
        hits = [n for n in plan.ranks if re.match(rf"(.*\.)?({key})$", n)]
        assert hits == [key]


def test_conv1d_is_said_to_be_transposed(tmp_path):
    """GPT-2 stores its weights input first; the config says so for it and only for it."""
    write("gpt2_lm", tmp_path / "a")
    write("llama_gqa_lm", tmp_path / "b")

    assert config_of(tmp_path / "a")["fan_in_fan_out"] is True
    assert config_of(tmp_path / "b")["fan_in_fan_out"] is False


def test_a_classifier_trains_its_head_without_the_config_naming_it(tmp_path):
    """PEFT adds the head of a sequence classifier by itself."""
    model, _ = write("bert_classifier", tmp_path / "a")

    peft_model = attach(model, tmp_path / "a")

    trainable = [n for n, p in peft_model.named_parameters() if p.requires_grad]
    assert any("classifier.modules_to_save" in n for n in trainable)


def test_one_rank_for_all_needs_no_pattern(tmp_path):
    """A uniform plan is plain LoRA."""
    write("llama_gqa_lm", tmp_path / "a", ranks=[4])

    config = config_of(tmp_path / "a")

    assert (config["r"], config["rank_pattern"], config["alpha_pattern"]) == (4, {}, {})


def test_modules_of_rank_zero_are_not_targeted(tmp_path):
    """PEFT has no rank 0; leaving a module out is how it gets none."""
    model, plan = write("llama_gqa_lm", tmp_path / "a", ranks=[4, 0, 2])

    peft_model = attach(model, tmp_path / "a")

    assert resolved(peft_model) == planned(plan)
    assert 0 not in config_of(tmp_path / "a")["rank_pattern"].values()


# --- names -------------------------------------------------------------------------------


class Tower(nn.Module):
    """``model.layers.N.q_proj``, as any decoder has it."""

    def __init__(self):
        super().__init__()
        self.model = nn.Module()
        self.model.layers = nn.ModuleList(nn.Module() for _ in range(2))
        for layer in self.model.layers:
            layer.q_proj = nn.Linear(12, 12)

    def forward(self, x):
        for layer in self.model.layers:
            x = layer.q_proj(x)
        return x


class TwoTowers(Tower):
    """The same names once more below ``vision``."""

    def __init__(self):
        super().__init__()
        self.vision = Tower()


@pytest.mark.parametrize("ranks", [[1, 2, 3, 4], [4, 3, 2, 1], [4, 4, 1, 2]])
def test_a_key_is_anchored_where_a_plain_one_hits_two_modules(ranks, tmp_path):
    """Two towers with equal inner names keep their own ranks, whichever has the largest."""
    model = TwoTowers()
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    plan = plan_of(tuple(TargetModule(n, 12, 12) for n in names), ranks)
    write_adapter(plan, tmp_path / "a", base_model="towers", task_type=None)

    peft_model = attach(model, tmp_path / "a")

    keys = config_of(tmp_path / "a")["rank_pattern"]
    assert resolved(peft_model) == planned(plan)
    assert all(key.startswith(("^model", "vision")) for key in keys)


def test_names_get_longer_until_only_the_plan_is_hit():
    """A leaf name where it is unambiguous, a longer ending where it is not."""
    every = [
        "encoder.layer.0.attention.output.dense",
        "encoder.layer.0.attention.self.query",
        "encoder.layer.0.output.dense",
        "encoder.layer.1.attention.self.query",
        "pooler.dense",
        "score",
    ]

    assert target_names([every[1], every[3]], every) == ["query"]
    assert target_names([every[1]], every) == ["0.attention.self.query"]
    assert target_names([every[0], every[5]], every) == ["attention.output.dense", "score"]
    assert target_names([every[4]], every) == ["pooler.dense"]
    assert target_names([every[3], every[1]]) == [every[1], every[3]]


def test_a_target_whose_name_ends_anothers_is_refused():
    """PEFT could not adapt the one without the other."""
    with pytest.raises(UnsupportedModule, match="outside the plan"):
        target_names(["layers.0.q"], ["layers.0.q", "vision.layers.0.q"])


@pytest.mark.parametrize("targets", [["dense"], ["output.dense"], ["query", "pooler.dense"]])
def test_the_same_modules_are_targeted_with_and_without_the_models_names(targets, tmp_path):
    """BERT has three kinds of ``dense``: both ways PEFT adapts the plan's and no other."""
    for folder, known in [("short", True), ("full", False)]:
        model, _ = tiny("bert_classifier")
        plan = plan_of(find_targets(model, targets), RANKS)
        names = [n for n, _ in model.named_modules()] if known else None
        write_adapter(
            plan,
            tmp_path / folder,
            base_model="org/model",
            task_type="SEQ_CLS",
            module_names=names,
        )

        assert resolved(attach(model, tmp_path / folder)) == planned(plan)


def test_patterns_are_relative_to_the_widest_module():
    """Modules that differ from it in rank or in alpha alone are both named in both."""
    ranks, alphas = rank_patterns({"a": 4, "b": 4, "c": 2}, {"a": 8, "b": 4.5, "c": 4})

    assert ranks == {"b": 4, "c": 2}
    assert alphas == {"b": 4.5, "c": 4}


# --- weights -----------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["B", "C"])
@pytest.mark.parametrize("name", ["llama_gqa_lm", "gpt2_lm"], indirect=True)
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


@pytest.mark.parametrize("name", ["bert_classifier", "llama_classifier"], indirect=True)
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


# --- layout C ----------------------------------------------------------------------------


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


@pytest.mark.parametrize("layout", ["B", "C"])
@pytest.mark.parametrize("name", ["llama_gqa_lm", "bert_classifier"], indirect=True)
def test_the_rank_map_counts_what_peft_trains(name, layout, tmp_path):
    """Also where padding and modules of rank 0 set plan and adapter apart."""
    model, plan = write(name, tmp_path / "a", ranks=[3, 9, 0], layout=layout, weights=True)
    adapter = json.loads((tmp_path / "a" / "rank_map.json").read_text())["adapter"]

    loaded = PeftModel.from_pretrained(model, tmp_path / "a", is_trainable=True)

    assert adapter == {
        "layout": layout,
        "width": 16 if layout == "C" else None,
        "trainable_parameters": lora_parameters(loaded),
    }
    assert (adapter["trainable_parameters"] > plan.spent.parameters) == (layout == "C")
    assert load_plan(tmp_path / "a") == plan


@pytest.mark.parametrize("name", ["llama_gqa_lm", "bert_classifier", "gpt2_lm"], indirect=True)
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


def test_layout_c_ends_at_256(tmp_path):
    """No server takes more."""
    with pytest.raises(InvalidOption, match="at most rank 256"):
        write("llama_gqa_lm", tmp_path / "a", ranks=[257], layout="C")


# --- the folder --------------------------------------------------------------------------


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


# --- reading -----------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize("anchor", ["", "^"])
def test_keys_with_the_wrappers_prefix_are_refused(field, anchor, tmp_path):
    """PEFT ignores them without a word; the error names the fix."""
    write("llama_gqa_lm", tmp_path / "a")
    config = config_of(tmp_path / "a")
    config[field] = {f"{anchor}base_model.model.{k}": v for k, v in config[field].items()}
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config))

    with pytest.raises(InvalidAdapter, match="remove that prefix"):
        read_adapter_config(tmp_path / "a")
    with pytest.raises(InvalidAdapter, match="remove that prefix"):
        load_plan(tmp_path / "a")


def test_a_config_that_is_no_config_is_refused(tmp_path):
    """Missing, broken, or something else."""
    with pytest.raises(InvalidAdapter, match="cannot read"):
        read_adapter_config(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(InvalidAdapter, match="cannot read"):
        read_adapter_config(tmp_path)
    (tmp_path / "adapter_config.json").write_text("[]")
    with pytest.raises(InvalidAdapter, match="expected an object"):
        read_adapter_config(tmp_path / "adapter_config.json")
