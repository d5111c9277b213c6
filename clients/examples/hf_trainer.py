"""Train a classifier with planned ranks: stock PEFT and the Trainer of transformers.

    python hf_trainer.py MODEL ADAPTER ROWS OUTPUT

MODEL is what was calibrated, a folder or a hub id; ADAPTER the folder that ``fimlora calibrate
--output`` or ``fimlora fetch`` has filled; ROWS a JSON Lines file of ``text`` and ``label``.
"""

import argparse
from pathlib import Path

import torch
from datasets import load_dataset
from fimlora import VerifyPlan
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)


def main() -> None:
    """Load, train, save."""
    options = read_options()
    rows = load_dataset("json", data_files=options.rows, split="train")
    labels = sorted(set(rows["label"]))  # as the calibration numbers them
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:  # as of many decoders; the calibration took the same
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token

    def encode(row: dict) -> dict:
        tokens = tokenizer(row["text"], truncation=True, max_length=128)
        return {**tokens, "labels": labels.index(row["label"])}

    base = AutoModelForSequenceClassification.from_pretrained(
        options.model, num_labels=len(labels)
    )
    # The head of a decoder reads the last token before padding.
    base.config.pad_token_id = tokenizer.pad_token_id
    model = with_adapter(base, options.adapter)
    model.print_trainable_parameters()
    trainer = Trainer(
        model,
        TrainingArguments(
            options.output,
            max_steps=options.steps,
            learning_rate=options.learning_rate,
            per_device_train_batch_size=16,
            logging_steps=5,
            report_to="none",
            save_strategy="no",
            dataloader_pin_memory=torch.cuda.is_available(),  # without a GPU it only warns
        ),
        train_dataset=rows.map(encode, remove_columns=rows.column_names),
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[VerifyPlan(options.plan or options.adapter)],  # stops what is not as planned
    )
    trainer.train()
    model.save_pretrained(options.output)


def with_adapter(base, folder: str):
    """Begin with the weights of the folder where it has some, else with what PEFT draws."""
    if (Path(folder) / "adapter_model.safetensors").exists():
        return PeftModel.from_pretrained(base, folder, is_trainable=True)
    return get_peft_model(base, LoraConfig.from_pretrained(folder))


def read_options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("model", "adapter", "rows", "output"):
        parser.add_argument(name)
    parser.add_argument(
        "--plan", help="what to verify against; the adapter's folder if left out"
    )
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
