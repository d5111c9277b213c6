"""Fine-tune a language model with planned ranks: TRL's SFTTrainer and stock PEFT.

    python trl_sft.py MODEL ADAPTER ROWS OUTPUT

ROWS is a JSON Lines file of any shape that both read: ``text``, ``prompt`` and ``completion``,
or ``messages``.
"""

import argparse

import torch
from datasets import load_dataset
from fimlora import VerifyPlan
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer


def main() -> None:
    """Load, train, save."""
    options = read_options()
    trainer = SFTTrainer(
        model=options.model,
        args=SFTConfig(
            options.output,
            max_steps=options.steps,
            learning_rate=options.learning_rate,
            per_device_train_batch_size=4,
            logging_steps=5,
            bf16=torch.cuda.is_available(),
            report_to="none",
            save_strategy="no",
        ),
        train_dataset=load_dataset("json", data_files=options.rows, split="train"),
        peft_config=LoraConfig.from_pretrained(options.adapter),
        callbacks=[VerifyPlan(options.plan or options.adapter)],  # stops what is not as planned
    )
    trainer.train()
    trainer.save_model(options.output)


def read_options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("model", "adapter", "rows", "output"):
        parser.add_argument(name)
    parser.add_argument(
        "--plan", help="what to verify against; the adapter's folder if left out"
    )
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    return parser.parse_args()


if __name__ == "__main__":
    main()
