"""Exports: what each tool would read, checked by stock PEFT or by the tool's own rule.

The tools themselves read them in `tests/consumers`.
"""

import ast
import json
import shlex
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import torch
import yaml
from peft import LoraConfig, PeftConfig, get_peft_model
from safetensors.torch import load_file

from fimlora import TargetModule, find_targets, write_adapter
from fimlora.adapter.config import build_adapter_config
from fimlora.adapter.exports import FORMATS, NEEDS_ANCHORS, NEEDS_WEIGHTS, export, server_rank
from fimlora.errors import InvalidOption
from support.models import TINY_MODELS, tiny
from support.peft_models import planned, resolved
from support.plans import plan_of

RANKS = [3, 8, 1, 5]


def adapter_of(name, *, ranks=RANKS, scale=2, layout="B"):
    """A tiny model, a plan for it, and the config that a job would store."""
    model, targets = tiny(name)
    plan = plan_of(find_targets(model, targets), ranks, scale=scale)
    config = build_adapter_config(
        plan,
        base_model="org/model",
        task_type="CAUSAL_LM" if TINY_MODELS[name].is_causal_lm else "SEQ_CLS",
        layout=layout,
        module_names=[n for n, _ in model.named_modules()],
    )
    return model, plan, config


def lora_of_python(text: str) -> dict:
    """The arguments that a snippet hands to ``LoraConfig``."""
    [value] = [
        node.value
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign) and node.targets[0].id == "lora"
    ]
    return ast.literal_eval(value)


def lora_of_axolotl(text: str) -> dict:
    """The arguments that Axolotl makes of its own keys."""
    settings = yaml.safe_load(text)
    assert settings.pop("adapter") == "lora"
    settings.pop("base_model")
    return {
        (key if key in {"lora_alpha", "lora_dropout"} else key.removeprefix("lora_")): value
        for key, value in settings.items()
    }


def lora_of_config(text: str) -> dict:
    """The arguments in ``adapter_config.json``; the model's name is for loaders."""
    config = json.loads(text)
    return {
        k: v for k, v in config.items() if k not in {"peft_type", "base_model_name_or_path"}
    }


READERS = {
    "peft": lora_of_config,
    "trl": lora_of_python,
    "unsloth": lora_of_python,
    "axolotl": lora_of_axolotl,
}


@pytest.mark.parametrize("layout", ["B", "C"])
@pytest.mark.parametrize("format", sorted(READERS))
@pytest.mark.parametrize("name", sorted(TINY_MODELS))
def test_peft_gives_every_module_its_rank_and_alpha(name, format, layout):
    """Whatever the tool's own keys are called and whatever layout was stored."""
    model, plan, config = adapter_of(name, layout=layout)
    try:
        arguments = READERS[format](export(plan, config, format).text)
    except InvalidOption:
        assert format == "unsloth"
        assert any("." in target for target in config["target_modules"])
        return

    peft_model = get_peft_model(model, LoraConfig(**arguments))

    assert resolved(peft_model) == planned(plan)


def test_the_trl_snippet_runs():
    """As it stands, with nothing but PEFT."""
    _, plan, config = adapter_of("llama_gqa_lm")
    names: dict = {}

    exec(export(plan, config, "trl").text, names)

    assert names["peft_config"].rank_pattern == config["rank_pattern"]
    assert names["peft_config"].task_type == "CAUSAL_LM"


def test_layout_c_has_one_rank_and_one_scale():
    """No patterns, the padded rank of servers, and alpha in proportion to it."""
    _, plan, config = adapter_of("llama_gqa_lm", ranks=[3, 20])

    written = json.loads(export(plan, config, "layout-c").text)

    assert (written["r"], written["lora_alpha"]) == (32, 64)
    assert written["rank_pattern"] == written["alpha_pattern"] == {}
    assert isinstance(written["target_modules"], list)


def test_tools_without_patterns_start_from_a_folder():
    """Their own keys name the folder, never a rank that would build another adapter."""
    _, plan, config = adapter_of("llama_gqa_lm")

    factory, swift = (export(plan, config, f).text for f in ("llama-factory", "ms-swift"))

    settings = yaml.safe_load(factory)
    assert settings["adapter_name_or_path"] == "./adapter"
    assert settings["create_new_adapter"] is False
    assert not any("rank" in key for key in settings)
    assert swift.splitlines()[-1] == "--model org/model --adapters ./adapter"
    for text in (factory, swift):
        assert f"# ./adapter {NEEDS_WEIGHTS}" in text
        assert "# put your own folder in place of ./adapter" in text


@pytest.mark.parametrize("format", ["llama-factory", "ms-swift", "vllm"])
def test_the_folder_that_is_named_is_the_one_that_is_written(format):
    """As a shell or YAML reads it, and with nothing left to fill in."""
    _, plan, config = adapter_of("llama_gqa_lm")

    text = export(plan, config, format, folder="runs/my adapter").text

    assert "./adapter" not in text
    assert "in place of" not in text
    if format == "llama-factory":
        assert yaml.safe_load(text)["adapter_name_or_path"] == "runs/my adapter"
    else:
        last = shlex.split(text.splitlines()[-1])[-1]
        assert last.removeprefix("fimlora=") == "runs/my adapter"


def test_servers_of_one_rank_find_it_in_every_tensor(tmp_path):
    """The rule of SGLang, TGI and LoRAX, none of which installs without a GPU.

    They read ``r``, ``lora_alpha`` and ``target_modules`` alone, stack q, k and v of a layer
    or a type over all layers, and so need one rank in all tensors and no hole.
    """
    model, plan, config = adapter_of("llama_gqa_lm", ranks=[3, 8, 1, 5])
    served = json.loads(export(plan, config, "layout-c").text)
    write_adapter(
        plan, tmp_path / "a", base_model="m", task_type="CAUSAL_LM", layout="C", weights=True
    )

    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")

    assert served["lora_alpha"] / served["r"] == plan.scale
    assert isinstance(served["target_modules"], list)
    assert not any("." in name for name in served["target_modules"])
    assert {t.shape[0] for n, t in tensors.items() if ".lora_A." in n} == {served["r"]}
    assert {t.shape[1] for n, t in tensors.items() if ".lora_B." in n} == {served["r"]}
    for leaf in served["target_modules"]:
        layers = [n for n, _ in model.named_modules() if n.endswith(f".{leaf}")]
        stacked = [tensors[f"base_model.model.{name}.lora_A.weight"] for name in layers]
        assert torch.stack(stacked).shape[0] == model.config.num_hidden_layers


@pytest.mark.parametrize(
    ("highest", "allowed"), [(1, 1), (2, 8), (16, 16), (17, 32), (257, 320), (512, 512)]
)
def test_a_server_is_told_a_rank_it_knows(highest, allowed):
    """The smallest of vLLM's ranks that holds the plan's largest."""
    modules = (TargetModule("a.0.q", 600, 600), TargetModule("a.1.q", 600, 600))
    plan = plan_of(modules, [1, highest])

    assert server_rank(plan) == allowed
    config = build_adapter_config(plan, base_model="m", task_type=None)
    assert f"--max-lora-rank {allowed} " in export(plan, config, "vllm").text


def test_a_rank_above_all_servers_is_refused():
    """The limit and the plan's rank are named."""
    plan = plan_of((TargetModule("a.0.q", 600, 600),), [513])

    with pytest.raises(InvalidOption, match="up to 512, the plan goes up to 513"):
        server_rank(plan)


def test_an_alpha_that_is_not_whole_is_refused_where_it_would_be_rounded():
    """Axolotl's keys are integers; PEFT takes any number."""
    _, plan, config = adapter_of("llama_gqa_lm", scale=0.5)

    with pytest.raises(InvalidOption, match="whole alphas"):
        export(plan, config, "axolotl")
    assert json.loads(export(plan, config, "peft").text)["alpha_pattern"]


def test_anchored_keys_come_with_a_warning():
    """A name that ends another one is anchored, which old PEFT ignores in silence."""
    modules = (TargetModule("layers.0.q", 64, 64), TargetModule("vision.layers.0.q", 64, 64))
    plan = plan_of(modules, [2, 8])
    config = build_adapter_config(plan, base_model="m", task_type=None)

    for tool in ("axolotl", "trl", "vllm", "ms-swift"):
        assert NEEDS_ANCHORS in export(plan, config, tool).text


@pytest.mark.parametrize("format", ["axolotl", "trl", "unsloth", "llama-factory", "ms-swift"])
def test_a_trainer_of_language_models_says_so_of_other_tasks(format):
    """It would load another model, or refuse it; the snippet of TRL shows what PEFT does instead."""
    plan = plan_of((TargetModule("layers.0.q", 64, 64),), [4])
    texts = {
        task: export(
            plan,
            build_adapter_config(plan, base_model="m", task_type=task, target_modules=["q"]),
            format,
        ).text
        for task in (None, "CAUSAL_LM", "SEQ_CLS", "SEQ_2_SEQ_LM")
    }

    for task, text in texts.items():
        is_other = task in ("SEQ_CLS", "SEQ_2_SEQ_LM")
        assert (f"language models, and this plan is of task_type {task}" in text) == is_other
        assert ("# trainer = SFTTrainer(" in text) == (format == "trl" and not is_other)
        assert ("# model = get_peft_model(" in text) == (format == "trl" and is_other)


@pytest.mark.parametrize(
    ("model_class", "task", "loader"),
    [
        ("Qwen2VLForConditionalGeneration", "CAUSAL_LM", "FastVisionModel"),
        ("Gemma3ForConditionalGeneration", "CAUSAL_LM", "FastVisionModel"),
        ("GlmAsrForConditionalGeneration", None, "FastVisionModel"),
        ("Gemma3ForCausalLM", "CAUSAL_LM", "FastLanguageModel"),
        ("Gemma3ForSequenceClassification", "SEQ_CLS", "FastLanguageModel"),
        ("T5ForConditionalGeneration", "SEQ_2_SEQ_LM", "FastLanguageModel"),
        (None, "CAUSAL_LM", "FastLanguageModel"),
    ],
)
def test_unsloth_loads_what_sees_by_its_class_for_that(monkeypatch, model_class, task, loader):
    """The snippet runs with a module of that one name, and gives it what the plan has."""
    plan = plan_of((TargetModule("layers.0.q", 64, 64),), [4])
    if model_class:
        plan = replace(plan, provenance={**plan.provenance, "model_class": model_class})
    config = build_adapter_config(plan, base_model="m", task_type=task, target_modules=["q"])
    text = export(plan, config, "unsloth").text
    unsloth = ModuleType("unsloth")
    setattr(unsloth, loader, SimpleNamespace(get_peft_model=lambda model, **lora: lora))
    monkeypatch.setitem(sys.modules, "unsloth", unsloth)
    names = {"model": "base"}

    exec(text, names)

    assert names["model"]["r"] == 4
    assert f"{loader}.from_pretrained(" in text
    other = {"FastVisionModel", "FastLanguageModel"} - {loader}
    assert not any(each in text for each in other)


def test_unsloth_gets_leaf_names_only():
    """A longer name would be read as another module's."""
    plan = plan_of((TargetModule("layers.0.q", 64, 64),), [4])
    config = build_adapter_config(plan, base_model="m", task_type=None)

    with pytest.raises(InvalidOption, match="leaf names"):
        export(plan, config, "unsloth")


@pytest.mark.parametrize("name", ["bert_classifier", "gpt2_lm", "llama_gqa_lm"])
def test_adaloras_config_is_the_schedule_of_stock_peft(name, tmp_path):
    """Read from its file it makes AdaLoRA on the plan's targets, and falls to its mean rank."""
    model, plan, config = adapter_of(name)
    text = export(plan, config, "adalora", steps=12, accumulation_steps=4).text
    (tmp_path / "adapter_config.json").write_text(text)

    read = PeftConfig.from_pretrained(tmp_path)
    assert read.base_model_name_or_path == "org/model"
    read.base_model_name_or_path = None  # the tiny model has no name; PEFT warns of another one
    peft_model = get_peft_model(model, read)

    found = {n: p for n, p in peft_model.named_parameters() if "lora_E" in n}
    assert len(found) == len(plan.modules)
    mean = sum(plan.ranks.values()) // len(plan.modules)
    assert (read.peft_type, read.target_r, read.total_step) == ("ADALORA", mean, 12)
    assert read.lora_alpha / read.init_r == plan.scale
    assert read.orth_reg_weight == 0.5 / 4
    allocator = peft_model.base_model.rankallocator
    assert allocator.target_bgt == mean * len(found) <= sum(plan.ranks.values())


@pytest.mark.parametrize(
    ("format", "options", "message"),
    [
        ("adalora", {}, "give steps, the optimizer steps"),
        ("adalora", {"steps": 1}, "total_steps=1; it must be a whole number, 2 or more"),
        ("peft", {"steps": 12}, "steps and accumulation are for format=adalora only"),
        (
            "vllm",
            {"accumulation_steps": 1},
            "steps and accumulation are for format=adalora only",
        ),
    ],
)
def test_a_length_of_training_is_for_adalora_and_only_there(format, options, message):
    """Nothing that is asked for is ignored."""
    _, plan, config = adapter_of("llama_gqa_lm")

    with pytest.raises(InvalidOption, match=message):
        export(plan, config, format, **options)


def test_adalora_that_would_begin_above_a_module_is_refused():
    """Its orthogonality cannot hold in more rows than the module has features."""
    plan = plan_of((TargetModule("a.q", 8, 64), TargetModule("a.v", 64, 64)), [8, 8])
    config = build_adapter_config(plan, base_model="m", task_type=None)

    with pytest.raises(
        InvalidOption, match=r"begins with rank 12 everywhere, and a\.q has only 8"
    ):
        export(plan, config, "adalora", steps=100)


def test_an_unknown_format_names_the_known_ones():
    """All of them."""
    _, plan, config = adapter_of("llama_gqa_lm")

    with pytest.raises(InvalidOption, match="peft, layout-c, adalora, axolotl"):
        export(plan, config, "gguf")


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_the_same_plan_gives_the_same_text(format):
    """Also with the names of its config in another order."""
    _, plan, config = adapter_of("llama_gqa_lm")
    shuffled = config | {"target_modules": config["target_modules"][::-1]}
    steps = 100 if format == "adalora" else None

    found = [export(plan, known, format, steps=steps) for known in (config, shuffled)]
    assert found[0] == found[1]


@pytest.mark.parametrize("format", ["peft", "layout-c", "trl", "axolotl"])
def test_modules_that_are_trained_in_full_are_named(format):
    """A tool that starts from ranks alone would leave a drawn pooler as it is."""
    _, plan, config = adapter_of("bert_classifier")
    saved = ["bert.pooler.dense", "classifier"]
    config |= {"modules_to_save": saved, "target_modules": ["query", "key", "value"]}

    text = export(plan, config, format).text

    read = {**READERS, "layout-c": lora_of_config}[format]
    assert read(text)["modules_to_save"] == saved
    assert "modules_to_save" not in export(plan, config | {"modules_to_save": None}, "trl").text


def with_saved(*names):
    """A decoder's plan beside which modules train whole."""
    _, plan, config = adapter_of("llama_gqa_lm")
    facts = {"modules_to_save": dict.fromkeys(names, 7)}
    return replace(plan, provenance=facts), config


def test_unsloth_takes_the_embedding_and_the_head_by_its_own_names():
    """It raises at any other name, a full one too."""
    plan, config = with_saved("lm_head", "model.embed_tokens")

    text = export(plan, config, "unsloth").text

    assert lora_of_python(text)["modules_to_save"] == ["embed_tokens", "lm_head"]
    with pytest.raises(InvalidOption, match=r"'model\.norm'; load the adapter folder"):
        export(*with_saved("model.norm"), "unsloth")


def test_vllm_refuses_what_trains_whole():
    """It raises at the first request otherwise."""
    with pytest.raises(InvalidOption, match="has 'lm_head': merge it into the base model"):
        export(*with_saved("lm_head"), "vllm")


@pytest.mark.parametrize("format", sorted({*FORMATS} - {"vllm"}))
def test_every_other_format_tells_of_what_trains_whole(format):
    """In its own words, or by where the tool has it from."""
    steps = 100 if format == "adalora" else None
    assert "lm_head" in export(*with_saved("lm_head"), format, steps=steps).text
