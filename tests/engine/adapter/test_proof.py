"""An adapter is proved on the model's tree before it is written."""

import pytest
import torch
from peft import PeftModel

from fimlora import write_adapter
from fimlora.adapter.config import build_adapter_config
from fimlora.adapter.proof import prove
from fimlora.errors import AdapterMismatch
from fimlora.model.targets import find_targets, head_tensors
from support.families import build, task_of
from support.peft_models import lora_parameters, planned, resolved
from support.plans import plan_of

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def plan_for(name, targets):
    return plan_of(find_targets(build(name), targets), [3, 8, 1, 5])


def config_for(name, plan, **options):
    return build_adapter_config(plan, base_model="a/b", task_type=task_of(name), **options)


@pytest.mark.parametrize("layout", ["B", "C"])
@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("qwen3_moe_mlp_only", ATTENTION),
        ("deepseek_v3", ["q_a_proj", "q_b_proj", "o_proj"]),
        ("mamba2", ["in_proj"]),
        ("bamba", ["in_proj", "out_proj"]),
        ("roberta", ["query", "key", "value"]),
        ("bert", ["query", "key", "value"]),
        ("gpt2", ["c_attn", "c_proj"]),
    ],
)
def test_what_is_proved_loads_through_stock_peft(name, targets, layout, tmp_path):
    """On a model built anew: planned ranks, scales and parameters, and every tensor used."""
    plan, model = plan_for(name, targets), build(name)
    write_adapter(
        plan, tmp_path / "a", base_model="a/b", task_type=task_of(name), layout=layout,
        weights=True, head=head_tensors(model), model=model,
    )  # fmt: skip

    loaded = PeftModel.from_pretrained(build(name), tmp_path / "a", is_trainable=True)

    if layout == "B":
        assert resolved(loaded) == planned(plan)
        assert lora_parameters(loaded) == plan.spent.parameters
    else:
        assert {r for r, _, _ in resolved(loaded).values()} == {8}
        assert resolved(loaded).keys() == plan.ranks.keys()
    assert {scale for _, _, scale in resolved(loaded).values()} == {plan.scale}


@pytest.mark.parametrize(
    ("name", "targets", "difference"),
    [
        ("qwen3_moe_mlp_only", ["gate_proj", "up_proj", "down_proj"], "on the parameter"),
        ("qwen3_moe_sparse_step", ["down_proj", "q_proj"], "on the parameter"),
        ("mamba2", ["in_proj", "out_proj"], "incompatible with Mamba"),
        ("roberta", ["classifier.dense", "query"], "'classifier.dense' gets no LoRA"),
        ("distilbert", ["pre_classifier", "q_lin"], "modules_to_save cannot be applied"),
    ],
)
@pytest.mark.parametrize("layout", ["B", "C"])
def test_what_peft_makes_otherwise_is_not_written(name, targets, difference, layout, tmp_path):
    """The first difference is named, and no folder appears."""
    plan, model = plan_for(name, targets), build(name)

    with pytest.raises(AdapterMismatch, match=difference):
        write_adapter(
            plan, tmp_path / "a", base_model="a/b", task_type=task_of(name), layout=layout,
            model=model.to("meta"),
        )  # fmt: skip

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"rank_pattern": {}}, "gets rank 8 instead of 3"),
        ({"alpha_pattern": {}}, "gets scale 5.33333 instead of 2"),
        ({"use_rslora": True}, "gets scale"),
        ({"target_modules": ["q_proj"]}, "v_proj' gets no LoRA instead of rank 8"),
        ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, "o_proj' gets LoRA of rank 8"),
        ({"lora_bias": True}, "parameters train instead of"),
        ({"bias": "all"}, "parameters train instead of"),
    ],
)
def test_every_difference_is_seen(change, difference):
    """Ranks, scales, modules, and whatever else would train."""
    name = "roberta" if "bias" in str(change) else "llama"
    targets = ["query", "value"] if name == "roberta" else ["q_proj", "v_proj"]
    plan = plan_for(name, targets)
    config = config_for(name, plan, target_modules=targets)
    prove(plan, config, build(name))

    with pytest.raises(AdapterMismatch, match=difference):
        prove(plan, config | change, build(name))


@pytest.mark.parametrize(
    ("damage", "difference"),
    [
        (lambda t: t.pop("base_model.model.classifier.weight"), "lacks 'base_model.model.cl"),
        (lambda t: t.update({"base_model.model.x.weight": (1,)}), "which nothing reads"),
        (lambda t: t.update({"base_model.model.classifier.bias": (4,)}), r"\(4,\) in the file"),
    ],
)
def test_a_file_of_weights_must_be_what_peft_loads(damage, difference):
    """Nothing is missing, unexpected or of another shape."""
    plan, model = plan_for("bert", ["query"]), build("bert")
    config = config_for("bert", plan, target_modules=["query"])
    tensors = {
        f"base_model.model.{m.name}.lora_{letter}.weight": shape
        for m in plan.modules
        for letter, shape in {
            "A": (plan.ranks[m.name], m.d_in),
            "B": (m.d_out, plan.ranks[m.name]),
        }.items()
    }
    tensors |= {f"base_model.model.{n}": tuple(t.shape) for n, t in head_tensors(model).items()}
    prove(plan, config, model, tensors=tensors)
    damage(tensors)

    with pytest.raises(AdapterMismatch, match=difference):
        prove(plan, config, model, tensors=tensors)


def test_a_proof_needs_no_weights_and_draws_nothing():
    """Any model will do that has the tree, and the random state stays."""
    plan = plan_for("llama", ["q_proj", "v_proj"])
    config = config_for("llama", plan, target_modules=["q_proj", "v_proj"])
    state = torch.get_rng_state()

    prove(plan, config, build("llama").to("meta"))

    assert torch.equal(torch.get_rng_state(), state)
