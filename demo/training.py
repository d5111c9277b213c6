"""What a user does with the result: load it with stock PEFT and train."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.docstrings import Row
from demo.errors import DemoFailed

N_STEPS = 20
BATCH_SIZE = 16
MAX_TOKENS = 32
LEARNING_RATE = 2e-3
OnStep = Callable[[int, float], None]


@dataclass(frozen=True, slots=True)
class Trained:
    """A short training run.

    Attributes:
        ranks: Rank that PEFT gave to each adapted module, by its name in the base model.
        losses: Loss of each step.
    """

    ranks: dict[str, int]
    losses: list[float]

    @property
    def first(self) -> float:
        """Mean loss of the first quarter."""
        return _mean(self.losses[: len(self.losses) // 4])

    @property
    def last(self) -> float:
        """Mean loss of the last quarter."""
        return _mean(self.losses[-(len(self.losses) // 4) :])


def train(
    model_folder: Path, adapter: Path, rows: Sequence[Row], *, on_step: OnStep
) -> Trained:
    """Put the adapter on the model with PEFT alone and train it for some steps.

    Where the folder holds weights, these are trained on, else what PEFT draws.
    """
    import torch
    import transformers

    # Between these two libraries, and nothing that a reader of the demonstration can mend.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # Steps this small gain little from more, and threads that must wait for each other on
    # a busy machine lose a lot.
    torch.set_num_threads(1)
    torch.manual_seed(0)
    labels = sorted({row["label"] for row in rows})
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        model_folder, num_labels=len(labels)
    )
    model = _adapted(base, adapter, model_folder)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=LEARNING_RATE)
    losses = []
    model.train()
    for step, batch in enumerate(_batches(rows), start=1):
        inputs = tokenizer(
            [row["text"] for row in batch],
            truncation=True,
            max_length=MAX_TOKENS,
            padding=True,
            return_tensors="pt",
        )
        targets = torch.tensor([labels.index(row["label"]) for row in batch])
        loss = model(**inputs, labels=targets).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        on_step(step, losses[-1])
    return Trained(_ranks(model), losses)


def _adapted(base: Any, adapter: Path, model_folder: Path) -> Any:
    from peft import LoraConfig, PeftModel, get_peft_model

    config = LoraConfig.from_pretrained(str(adapter))
    config.base_model_name_or_path = str(model_folder)  # the service knows it by name only
    if (adapter / "adapter_model.safetensors").is_file():
        return PeftModel.from_pretrained(base, str(adapter), config=config, is_trainable=True)
    return get_peft_model(base, config)


def check(trained: Trained, *, planned: dict[str, int]) -> None:
    """Refuse a run whose adapter is not the planned one, or that learned nothing.

    Raises:
        DemoFailed: Says what differs.
    """
    if trained.ranks != planned:
        differing = sorted(set(trained.ranks.items()) ^ set(planned.items()))
        raise DemoFailed(f"PEFT's ranks are not the plan's: {differing[:4]}")
    if not trained.last < trained.first:
        raise DemoFailed(f"the loss did not fall: {trained.first:.3f} to {trained.last:.3f}")


def _batches(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    for step in range(N_STEPS):
        start = step * BATCH_SIZE % (len(rows) - BATCH_SIZE)
        yield rows[start : start + BATCH_SIZE]


def _ranks(model: Any) -> dict[str, int]:
    prefix = "base_model.model."
    return {
        name.removeprefix(prefix): module.r["default"]
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
