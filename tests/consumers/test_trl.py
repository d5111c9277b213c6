"""TRL trains what its snippet describes: every module with its planned rank."""

import torch
from datasets import Dataset
from peft import PeftModel
from trl import SFTConfig, SFTTrainer

from support.model_folders import WORDS, make_tokenizer
from support.peft_models import lora_tensors, planned, resolved, updates


def trainer_of(model, folder, **options):
    """A trainer that takes a few steps on rows of random words."""
    rows = Dataset.from_dict({"text": [" ".join(WORDS[i : i + 9]) for i in range(12)]})
    settings = SFTConfig(
        output_dir=str(folder),
        max_steps=3,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        use_cpu=True,
        gradient_checkpointing=None,  # TRL says True by a name that transformers deprecates
        bf16=False,
        report_to=[],
        disable_tqdm=True,
    )
    tokenizer = make_tokenizer(eos_token="[EOS]", pad_token="[PAD]")
    return SFTTrainer(
        model=model, args=settings, train_dataset=rows, processing_class=tokenizer, **options
    )


def assert_trained_as_planned(trainer, llama, folder):
    """Ranks and scales in training, every pair moved, and the saved adapter is the same."""
    assert resolved(trainer.model) == planned(llama.plan)

    trainer.train()

    assert resolved(trainer.model) == planned(llama.plan)
    changes = updates(trainer.model)
    assert all(change.abs().max() > 0 for change in changes.values())
    trainer.save_model(folder)
    saved = PeftModel.from_pretrained(llama.load(), folder)
    assert resolved(saved) == planned(llama.plan)
    torch.testing.assert_close(updates(saved), changes)


def test_the_snippet_trains_the_plan(llama, tmp_path):
    """The exported lines run as they stand, in a process that has TRL."""
    names: dict = {}
    exec(llama.export("trl"), names)

    trainer = trainer_of(llama.load(), tmp_path / "out", peft_config=names["peft_config"])

    assert_trained_as_planned(trainer, llama, tmp_path / "saved")


def test_an_adapter_folder_is_trained_on(llama, tmp_path):
    """The folder with initial weights, loaded by PEFT and handed over as the model."""
    folder = llama.write_adapter(tmp_path / "adapter")
    model = PeftModel.from_pretrained(llama.load(), folder, is_trainable=True)
    before = lora_tensors(model)

    trainer = trainer_of(model, tmp_path / "out")

    assert lora_tensors(trainer.model).keys() == before.keys()
    assert_trained_as_planned(trainer, llama, tmp_path / "saved")
