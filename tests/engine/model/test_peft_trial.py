"""What stock PEFT would make of targets, found on a copy of the tree without weights."""

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import ParamWrapper
from torch import nn
from transformers.pytorch_utils import Conv1D

from fimlora.model.peft_trial import PeftRefusal, adapt, unadaptable, unadaptable_by_peft
from support.families import (
    CLASSIFIERS,
    FAMILIES,
    FREE_STATE_SPACE,
    REWRITTEN,
    STATE_SPACE,
    UNTOUCHED,
    build,
    task_of,
)
from support.peft_models import lora_layers, lora_parameters, resolved

# PEFT says of keys of its own making that nothing matches them.
pytestmark = pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match")

PROJECTIONS = {"gate_proj", "up_proj", "down_proj"}


def linear_names(model):
    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    ]


def stock(name, targets, **options):
    """Stock PEFT on a freshly built model with weights."""
    options = {"r": 2, "lora_alpha": 4, "task_type": task_of(name)} | options
    options["fan_in_fan_out"] = name.startswith("gpt2")
    config = LoraConfig(target_modules=list(targets), **options)
    return get_peft_model(build(name), config)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_left_is_what_stock_peft_adapts(name):
    """All of it and nothing else, whichever family; what is left out it does not adapt."""
    model = build(name)
    names = linear_names(model)

    reasons = unadaptable(model, names, task_type=task_of(name))

    left = [module for module in names if module not in reasons]
    adapted = stock(name, left)
    shapes = [model.get_submodule(n).weight.shape for n in left]
    assert resolved(adapted).keys() == set(left)
    assert lora_parameters(adapted) == 2 * sum(map(sum, shapes))
    for lost in reasons:
        try:
            found = lora_layers(stock(name, [*left, lost]))
        except (ValueError, TypeError):
            continue
        assert isinstance(found.get(lost), ParamWrapper | None)  # with a rank of its own


@pytest.mark.parametrize("name", REWRITTEN)
def test_mixtures_lose_what_is_named_like_their_experts(name):
    """PEFT moves those targets, dense layers and shared experts alike, to the fused experts."""
    model = build(name)
    names = linear_names(model)

    reasons = unadaptable(model, names, task_type="CAUSAL_LM")

    experts = {n for n in names if n.rpartition(".")[2] in PROJECTIONS}
    assert experts <= reasons.keys()
    assert {n for n in reasons if n not in experts} <= {n for n in names if n.endswith(".gate")}
    assert all("fused experts" in reason for reason in reasons.values())


@pytest.mark.parametrize("name", [*UNTOUCHED, *FREE_STATE_SPACE])
def test_other_models_lose_nothing(name):
    """Projections of those names are not rewritten, and not every ``out_proj`` is refused."""
    model = build(name)

    assert unadaptable(model, linear_names(model), task_type="CAUSAL_LM") == {}


@pytest.mark.parametrize("name", STATE_SPACE)
def test_state_space_models_lose_the_map_that_peft_refuses(name):
    """The reason is the refusal in PEFT's own words."""
    model = build(name)

    reasons = unadaptable(model, linear_names(model), task_type="CAUSAL_LM")

    assert {n.rpartition(".")[2] for n in reasons} == {"out_proj"}
    assert all("PEFT refuses it" in r and "incompatible" in r for r in reasons.values())


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("roberta", {"classifier.dense", "classifier.out_proj"}),
        ("electra", {"classifier.dense", "classifier.out_proj"}),
        ("distilbert", {"pre_classifier", "classifier"}),
        ("bert", {"classifier"}),
        ("deberta_v2", {"classifier"}),
        ("gpt2_classifier", {"score"}),
    ],
)
def test_classifiers_lose_what_peft_trains_in_full(name, lost):
    """Heads, and all that lies in a module whose name ends like one."""
    model = build(name)

    assert unadaptable(model, linear_names(model), task_type="SEQ_CLS").keys() == lost


def test_modules_to_save_are_no_targets():
    """What the caller has saved in full gets no LoRA either."""
    model = build("deberta_v2")
    names = ["pooler.dense", "deberta.encoder.layer.0.attention.self.query_proj"]

    reasons = unadaptable(model, names, task_type="SEQ_CLS", modules_to_save=["pooler"])

    assert reasons == {"pooler.dense": "part of 'pooler', which PEFT trains in full"}


def test_a_name_that_ends_another_one_is_left_out():
    """PEFT reads full names as endings, and would adapt the other module, too."""
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.ModuleDict({"a": nn.Linear(2, 2)})})

    assert unadaptable(model, ["a", "b.a"], task_type=None) == {}
    assert unadaptable(model, ["b.a"], task_type=None) == {}
    assert unadaptable(model, ["a"], task_type=None) == {
        "a": "PEFT would adapt 'b.a' with it, which is not a target"
    }


@pytest.mark.parametrize("name", ["qwen3_moe_mlp_only", "distilbert", "gpt2", "mamba2"])
def test_a_trial_leaves_the_model_alone(name):
    """No module, flag, hook, config or random number of the caller's changes."""
    model = build(name)
    model.get_submodule(linear_names(model)[0]).register_forward_hook(lambda *_: None)
    modules = [(n, m, sorted(vars(m))) for n, m in model.named_modules()]
    tensors = {n: (p, p.clone(), p.requires_grad) for n, p in model.named_parameters()}
    config, state = model.config.to_dict(), torch.get_rng_state()

    unadaptable(model, linear_names(model), task_type=task_of(name))

    assert [(n, m, sorted(vars(m))) for n, m in model.named_modules()] == modules
    assert all(
        tensors[n][0] is p
        and torch.equal(tensors[n][1], p)
        and p.requires_grad == tensors[n][2]
        for n, p in model.named_parameters()
    )
    assert model.config.to_dict() == config
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_that_carries_lora_is_tried_as_its_base_model():
    """Names and answer are those of the model that PEFT has wrapped."""
    base = build("qwen3_moe_mlp_only")
    names = linear_names(base)
    wanted = unadaptable(base, names, task_type="CAUSAL_LM")

    wrapped = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))

    assert unadaptable(wrapped.get_base_model(), names, task_type="CAUSAL_LM") == wanted


def test_fused_experts_are_reported_as_parameters():
    """With the rank that PEFT gives every branch of a fused projection, twice."""
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8}
    targets = ["gate_proj", "up_proj", "down_proj"]

    adapted = adapt(build("qwen3_moe_mlp_only"), config | {"target_modules": targets})

    assert adapted.ranks == {
        "model.layers.1.mlp.experts.down_proj": 4,
        "model.layers.1.mlp.experts.gate_up_proj": 8,
    }
    assert sorted(adapted.parameters) == sorted(adapted.ranks)
    found = get_peft_model(build("qwen3_moe_mlp_only"), LoraConfig(r=4, target_modules=targets))
    assert adapted.n_lora_parameters == lora_parameters(found)


def test_whatever_peft_raises_is_a_refusal():
    """Its message is kept, cut to a sentence or two."""
    config = {"peft_type": "LORA", "r": 4, "target_modules": ["nothing"]}

    with pytest.raises(PeftRefusal, match="not found in the base model"):
        adapt(build("llama"), config)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_tensors_of_a_file_are_those_that_stock_peft_saves(name, tmp_path):
    """Names and shapes, heads included."""
    from safetensors.torch import load_file

    targets = [n for n in linear_names(build(name)) if "classifier" not in n and n != "score"]
    peft_model = stock(name, targets)
    peft_model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")

    config = peft_model.peft_config["default"].to_dict()
    adapted = adapt(build(name), config, with_tensors=True)

    assert adapted.tensors == {n: tuple(t.shape) for n, t in saved.items()}
    assert adapted.lost == ()


@pytest.mark.parametrize(
    ("class_name", "head"),
    [
        ("RobertaForTokenClassification", "classifier"),
        ("RobertaForQuestionAnswering", "qa_outputs"),
        ("RobertaForMultipleChoice", None),
    ],
)
def test_the_task_is_that_of_the_models_class(class_name, head):
    """PEFT saves other heads for other tasks, and none for a class it does not know."""
    config = build("roberta").config
    model = getattr(transformers, class_name)(config)

    reasons = unadaptable_by_peft(model, linear_names(model))

    assert reasons.keys() == ({head} if head else set())


def test_what_carries_lora_already_can():
    """Even a map that PEFT refuses by its name, once somebody has put LoRA there."""
    model = get_peft_model(build("bamba"), LoraConfig(r=2, target_modules=["out_proj"]))
    model.get_base_model().config.model_type = "mamba2"
    names = ["model.layers.0.mamba.out_proj"]

    assert unadaptable_by_peft(build("mamba2"), ["backbone.layers.0.mixer.out_proj"])
    assert unadaptable_by_peft(model, names) == {}
