"""A plan for a tiny classifier, its adapter, and short trainings of it that go as planned or not."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model
from torch import nn

from fimlora import RankPlan, find_targets, write_adapter
from fimlora.model.targets import head_tensors
from support.models import tiny
from support.plans import plan_of
from support.trainer_runs import trainer_of

NAME = "llama_classifier"
RANKS = [3, 8, 1, 5]
SOURCE = {
    "source": "hub", "id": "org/model", "revision": "0123456789abcdef", "model_type": "llama",
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A plan in a folder.

    Attributes:
        folder: What `fimlora fetch` would fill.
        plan: The plan.
    """

    folder: Path
    plan: RankPlan

    def config(self, **changes: Any) -> LoraConfig:
        """The planned config as PEFT reads it, with some fields as somebody changes them."""
        config = LoraConfig.from_pretrained(self.folder)
        for field, value in changes.items():
            setattr(config, field, value)
        return config

    def model(self, **changes: Any) -> nn.Module:
        """A fresh PEFT model of the planned config, or of a changed one."""
        return get_peft_model(base(), self.config(**changes))


def base() -> nn.Module:
    """The base model, as one from the hub calls itself."""
    model, _ = tiny(NAME)
    model.name_or_path = model.config._name_or_path = SOURCE["id"]
    return model


def planned_in(folder: Path, *, name: str = NAME, **options: Any) -> Case:
    """Write a plan and its adapter."""
    model, targets = tiny(name)
    scaling = {k: options.pop(k) for k in ("scaling", "lora_alpha") if k in options}
    plan = plan_of(
        find_targets(model, targets), RANKS, provenance={"base_model": SOURCE}, **scaling
    )
    options = {"layout": "B", "task_type": "SEQ_CLS", "modules_to_save": ["score"]} | options
    write_adapter(
        plan,
        folder,
        base_model=SOURCE["id"],
        module_names=[n for n, _ in model.named_modules()],
        head=head_tensors(model),
        **options,
    )
    return Case(folder, plan)


def run(
    model: nn.Module, folder: Path, *callbacks: Any, n_steps: int = 2, **options: Any
) -> None:
    """A few steps of the Trainer, with a checkpoint at the end."""
    options = {"save_strategy": "steps", "save_steps": n_steps} | options
    trainer = trainer_of(model, folder, callbacks, n_steps=n_steps, **options)
    with warnings.catch_warnings():
        # PEFT looks for the base model's config when it saves, and there is no such model.
        warnings.filterwarnings("ignore", "Could not find a config file")
        trainer.train()
