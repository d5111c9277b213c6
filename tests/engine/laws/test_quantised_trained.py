"""QLoRA from a plan of the full precision model: trained by stock packages, saved, and verified."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from typer.testing import CliRunner

from fimlora import (
    VerifyPlan,
    allocate,
    apply_fim_ranks,
    measure,
    score,
    verify_adapter,
    write_adapter,
)
from fimlora.errors import NotAsPlanned
from fimlora.measuring.settings import Settings
from fimlora.measuring.streamed.run import measure_streamed
from fimlora_client.cli import app
from fimlora_client.cli.common.console import DIFFERS
from support.models import make_batch
from support.peft_models import uniform_peft
from support.quantised import FORMATS, TARGETS, folder_of_a_model, quantised

# Of packages, about kernels that a CPU has not or about how they are called.
pytestmark = pytest.mark.filterwarnings("ignore")
BASE = "org/model"
N_STEPS = 2


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    """PEFT asks the hub about the base model when it saves."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return folder_of_a_model(tmp_path_factory.mktemp("plain") / "model")


@pytest.fixture(scope="module")
def planned(folder, tmp_path_factory):
    """A plan that was measured in full precision, and the folder of its adapter."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    batches = [make_batch("llama_gqa_lm", [9, 5, 7], seed=i) for i in range(2)]
    statistics = measure(model, batches, target_modules=TARGETS)
    plan = allocate(score(statistics), budget=4, r_max=8)
    written = tmp_path_factory.mktemp("planned")
    names = [name for name, _ in model.named_modules()]
    write_adapter(plan, written, base_model=BASE, task_type="CAUSAL_LM", module_names=names)
    return plan, written


def qlora(name, folder, config):
    """What a QLoRA script does with a model that is there."""
    model = quantised(name, folder)
    model.name_or_path = model.config._name_or_path = BASE
    prepared = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return get_peft_model(prepared, config)


def train(model, folder, *callbacks):
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=N_STEPS, per_device_train_batch_size=3,
        learning_rate=5e-3, save_strategy="steps", save_steps=N_STEPS, report_to=[],
        use_cpu=True, disable_tqdm=True, logging_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    Trainer(
        model, arguments, train_dataset=[*range(3 * N_STEPS)], callbacks=[*callbacks],
        data_collator=lambda rows: make_batch("llama_gqa_lm", [9, 5, 7], seed=rows[0]),
    ).train()  # fmt: skip


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_qlora_trains_as_planned_and_is_verified(name, folder, planned, tmp_path):
    """Before, at the checkpoint, after, from the files, and as stock PEFT reads them."""
    plan, written = planned
    callback = VerifyPlan(written)
    model = qlora(name, folder, LoraConfig.from_pretrained(written))

    train(model, tmp_path / "run", callback)
    model.save_pretrained(tmp_path / "saved")

    assert [report.as_planned for report in callback.reports] == [True] * 3
    for where in ("run", "saved"):
        found = verify_adapter(tmp_path / where, written)
        assert found.as_planned, found.sentence
        assert found.found.parameters == plan.spent.parameters
    fresh = PeftModel.from_pretrained(quantised(name, folder), tmp_path / "saved")
    for key, tensor in fresh.state_dict().items():
        if "lora_" in key:
            assert torch.equal(tensor, model.state_dict()[key]), key
            assert "lora_A" in key or tensor.any()


@pytest.mark.parametrize("name", ["bitsandbytes_nf4", "gptq_8", "awq_4"])
def test_qlora_of_other_ranks_stops_before_its_first_step(name, folder, planned, tmp_path):
    """And its files are found out by the command."""
    _, written = planned
    config = LoraConfig.from_pretrained(written)
    config.rank_pattern = {}
    model = qlora(name, folder, config)
    model.save_pretrained(tmp_path / "saved")

    with pytest.raises(NotAsPlanned, match="rank_pattern"):
        train(model, tmp_path / "run", VerifyPlan(written))
    asked = ["verify", str(tmp_path / "saved"), "--plan", str(written), "--json"]
    result = CliRunner().invoke(app, asked)

    assert result.exit_code == DIFFERS
    assert not json.loads(result.stdout)["as_planned"]


@pytest.mark.parametrize(
    "name", ["bitsandbytes_nf4", "bitsandbytes_fp4_nested", "bitsandbytes_int8"]
)
def test_saved_packed_a_model_gets_the_ranks_of_the_live_one(name, folder, tmp_path):
    """What the service measures of the saved folder is what one call measures of the model."""
    batches = [make_batch("llama_gqa_lm", [9, 5, 7], seed=i) for i in range(2)]
    live = apply_fim_ranks(
        uniform_peft(quantised(name, folder), TARGETS, r=4), batches, r_min=1, r_max=8
    )
    quantised(name, folder).save_pretrained(tmp_path)

    statistics = measure_streamed(
        tmp_path, batches, Settings(target_modules=TARGETS), dtype=torch.float32
    )
    saved = allocate(score(statistics), budget=4, r_min=1, r_max=8)

    assert saved.ranks == live.ranks
    assert len(set(live.ranks.values())) > 1
    for module, wanted in live.scores.items():
        assert saved.scores[module] == pytest.approx(wanted, rel=1e-3)


def test_a_packed_repository_is_another_base_unless_it_is_vouched_for(
    folder, planned, tmp_path
):
    """Its name alone does not say what it was packed from: one option does."""
    _, written = planned
    model = qlora("bitsandbytes_nf4", folder, LoraConfig.from_pretrained(written))
    packed = "other/model-bnb-4bit"
    model.peft_config["default"].base_model_name_or_path = packed
    model.save_pretrained(tmp_path)

    found = verify_adapter(tmp_path, written)

    assert [fault.code for fault in found.faults] == ["base_model"]
    assert "--base-model NAME" in found.next_step
    assert verify_adapter(tmp_path, written, base_model=packed).as_planned
