"""Fine-tune with planned ranks: Unsloth, which needs a GPU.

    fimlora fetch --pin TASK:TAG --format unsloth --output lora_unsloth.py  # what `lora` holds
    python unsloth_sft.py MODEL ADAPTER ROWS OUTPUT

What the exported snippet has as ``lora`` is read here from the adapter folder, so that nothing
has to be pasted.
"""

import sys

from unsloth import FastLanguageModel  # before trl, which it changes

from datasets import load_dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

NAMES = ("r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern")


def main(model_id: str, adapter: str, rows: str, output: str) -> None:
    """Load, train, save."""
    planned = LoraConfig.from_pretrained(adapter)
    model, tokenizer = FastLanguageModel.from_pretrained(model_id, load_in_4bit=False)
    model = FastLanguageModel.get_peft_model(
        model,
        target_modules=sorted(planned.target_modules),
        **{name: getattr(planned, name) for name in NAMES},
    )
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        args=SFTConfig(output, learning_rate=2e-4, max_steps=100, report_to="none"),
        train_dataset=load_dataset("json", data_files=rows, split="train"),
    )
    trainer.train()
    trainer.save_model(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
