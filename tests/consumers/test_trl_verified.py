"""TRL with `VerifyPlan`: what it trains is the plan, and so is the reference that DPO makes."""

import json

import pytest
from datasets import Dataset
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer

from fimlora import VerifyPlan, verify_adapter
from fimlora.errors import NotAsPlanned
from support.model_folders import WORDS, make_tokenizer


def planned_at(llama, tmp_path):
    """The adapter's folder, and its config as PEFT reads it."""
    folder = llama.write_adapter(tmp_path / "planned")
    fields = json.loads((folder / "adapter_config.json").read_text())
    return folder, LoraConfig.from_peft_type(**fields)


def dpo_of(llama, folder, config, callback):
    """DPO without a model of reference: that is the adapter's base, or a clone of its config."""
    rows = [
        {"prompt": WORDS[i], "chosen": WORDS[i + 1], "rejected": WORDS[i + 2]} for i in range(8)
    ]
    settings = DPOConfig(
        output_dir=str(folder), max_steps=2, per_device_train_batch_size=2, use_cpu=True,
        gradient_checkpointing=None, bf16=False, report_to=[], disable_tqdm=True, save_steps=2,
    )  # fmt: skip
    return DPOTrainer(
        model=llama.load(), args=settings, train_dataset=Dataset.from_list(rows),
        processing_class=make_tokenizer(eos_token="[EOS]", pad_token="[PAD]"),
        peft_config=config, callbacks=[callback],
    )  # fmt: skip


def test_dpo_trains_the_plan(llama, tmp_path):
    folder, config = planned_at(llama, tmp_path)
    callback = VerifyPlan(folder)

    dpo_of(llama, tmp_path / "run", config, callback).train()

    assert [report.as_planned for report in callback.reports] == [True] * 3
    assert verify_adapter(tmp_path / "run", folder).as_planned


def test_dpo_without_the_patterns_stops_before_its_first_step(llama, tmp_path):
    """As where a trainer forwards rank and alpha alone."""
    folder, config = planned_at(llama, tmp_path)
    config.rank_pattern = config.alpha_pattern = {}

    trainer = dpo_of(llama, tmp_path / "run", config, VerifyPlan(folder))
    with pytest.raises(NotAsPlanned, match="default rank 8"):
        trainer.train()
    assert trainer.state.global_step == 0
