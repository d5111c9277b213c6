"""Short runs of the Trainer on a classification task with rows of uneven length."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

LENGTHS = (15, 9, 7, 3)


def make_examples(n: int, *, vocabulary: int = 60, n_classes: int = 3) -> list[dict[str, Any]]:
    """Rows whose first token tells the class."""
    draws = torch.Generator().manual_seed(0)
    rows = []
    for i in range(n):
        ids = torch.randint(n_classes + 1, vocabulary, (LENGTHS[i % 4],), generator=draws)
        ids[0] = 1 + i % n_classes
        rows.append({"input_ids": ids, "label": i % n_classes})
    return rows


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pad to the longest."""
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        n = len(row["input_ids"])
        ids[i, :n], mask[i, :n] = row["input_ids"], 1
    labels = torch.tensor([row["label"] for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def trainer_of(
    model: nn.Module,
    folder: Path,
    callbacks: Sequence[TrainerCallback],
    *,
    n_steps: int,
    n_rows: int = 64,
    vocabulary: int = 60,
    **options: Any,
) -> Trainer:
    """A Trainer on the CPU that saves what it is told to and reports to nobody."""
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "learning_rate": 5e-3,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_strategy": "no",
        "dataloader_pin_memory": False,
        "seed": 3,
        **options,
    }
    arguments = TrainingArguments(output_dir=str(folder), max_steps=n_steps, **settings)
    return Trainer(
        model,
        arguments,
        train_dataset=make_examples(n_rows, vocabulary=vocabulary),
        data_collator=collate,
        callbacks=[*callbacks],
    )
