"""Modules that train whole are held against the plan: missing, and not planned."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from fimlora import apply_fim_ranks, verify_adapter, write_adapter
from fimlora.adapter.verifying.compare import compare
from fimlora.adapter.verifying.intended import read_intended
from fimlora.adapter.verifying.live import see_model
from fimlora.model.saved_whole import facts_of_saved, find_saved
from fimlora.model.targets import find_targets
from support.models import make_batch, tiny
from support.peft_models import planned, resolved
from support.plans import plan_of
from support.trained_adapters import edit_config

NAME, SAVED = "llama_gqa_lm", ["embed_tokens", "lm_head"]
FULL = ["lm_head", "model.embed_tokens"]


@pytest.fixture
def planned_folder(tmp_path):
    model, _ = tiny(NAME)
    facts = facts_of_saved(find_saved(model, SAVED))
    plan = plan_of(find_targets(model, ["q_proj", "v_proj"]), [3, 2], provenance=facts)
    write_adapter(plan, tmp_path / "a", base_model=None, task_type="CAUSAL_LM", model=model)
    return tmp_path / "a"


def test_the_config_names_them_in_full(planned_folder):
    assert LoraConfig.from_pretrained(planned_folder).modules_to_save == FULL
    assert verify_adapter(planned_folder, planned_folder).as_planned


TRAINED = {
    "as planned": (FULL, None),
    "by their ends": (["embed_tokens", "lm_head"], None),
    "one is missing": (["lm_head"], "model.embed_tokens is planned to be trained in full"),
    "none": (None, "is planned to be trained in full, and is not"),
    "one besides": (
        [*FULL, "model.norm"],
        "model.norm is trained in full, which is not planned",
    ),
}


@pytest.mark.parametrize("plan", ["folder", "rank_map.json"])
@pytest.mark.parametrize("kind", TRAINED)
@pytest.mark.filterwarnings("ignore:Could not find a config file")
def test_what_is_missing_and_what_is_besides(planned_folder, tmp_path, kind, plan):
    """On the live model, in what it saves, and in a config alone; by config and plan, or plan."""
    saved, fault = TRAINED[kind]
    config = LoraConfig.from_pretrained(planned_folder)
    config.modules_to_save = saved
    model = get_peft_model(tiny(NAME)[0], config)
    model.save_pretrained(tmp_path / "trained")
    source = planned_folder if plan == "folder" else planned_folder / "rank_map.json"
    intended = read_intended(source)

    found = [
        compare(intended, see_model(model, intended)),
        verify_adapter(tmp_path / "trained", source),
    ]
    (tmp_path / "trained/adapter_model.safetensors").unlink()
    found.append(verify_adapter(tmp_path / "trained", source))

    for each in found:
        assert each.as_planned == (fault is None), each.sentence
        assert {f.code for f in each.faults} <= {"saved"}
        assert fault is None or any(fault in f.message for f in each.faults), each.faults


def test_a_tied_pair_that_peft_keeps_one_is_not_as_planned(tmp_path):
    """The plan counts two copies, and one would train."""
    model, _ = tiny("gpt2_lm")
    facts = facts_of_saved(find_saved(model, ["wte", "lm_head"]))
    plan = plan_of(find_targets(model, ["c_attn"]), [3, 2], provenance=facts)
    write_adapter(plan, tmp_path / "a", base_model=None, task_type="CAUSAL_LM", model=model)
    edit_config(tmp_path / "a", ensure_weight_tying=True)

    found = verify_adapter(tmp_path / "a", plan)
    assert [f.code for f in found.faults] == ["saved"]
    assert "ensure_weight_tying keeps" in found.sentence


@pytest.mark.filterwarnings("ignore:Could not find a config file")
def test_ranks_of_a_live_adapter_leave_them_as_they_are(tmp_path):
    """The config names them, the plan counts them, and their weights are untouched."""
    model, targets = tiny(NAME)
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=list(targets), modules_to_save=["lm_head"]
    )
    model = get_peft_model(model, config)
    before = model.base_model.model.lm_head.modules_to_save["default"].weight.clone()

    plan = apply_fim_ranks(model, [make_batch(NAME, [7, 5, 6])])

    assert plan.saved == {"lm_head": before.numel()}
    assert resolved(model) == planned(plan)
    assert model.peft_config["default"].modules_to_save == ["lm_head"]
    after = model.base_model.model.lm_head.modules_to_save["default"].weight
    assert torch.equal(after, before)
    assert after.requires_grad
    model.save_pretrained(tmp_path / "trained")
    assert verify_adapter(tmp_path / "trained", plan).as_planned
