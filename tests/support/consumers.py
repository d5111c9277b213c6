"""What every consumer is given: a tiny model on disk, and a plan of unequal ranks for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from torch import nn

from fimlora import find_targets, write_adapter
from fimlora.adapter.config import build_adapter_config
from fimlora.adapter.exports import export
from fimlora.plan import RankPlan
from support.model_folders import make_decoder
from support.plans import plan_of

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANKS = [3, 8, 1, 5]


@dataclass(frozen=True)
class Planned:
    """A Llama of two layers on disk, with what fimlora exports for it."""

    model_folder: Path
    plan: RankPlan
    config: Mapping[str, Any]
    module_names: tuple[str, ...]

    def load(self) -> nn.Module:
        """The base model."""
        return transformers.AutoModelForCausalLM.from_pretrained(self.model_folder)

    def export(self, format: str) -> str:
        """The plan in a tool's words."""
        return export(self.plan, self.config, format).text

    def write_adapter(self, folder: Path, *, layout: str = "B") -> Path:
        """The folder that a job with ``adapter.weights`` makes."""
        write_adapter(
            self.plan,
            folder,
            base_model=str(self.model_folder),
            task_type="CAUSAL_LM",
            layout=layout,
            weights=True,
            module_names=self.module_names,
        )
        return folder


def planned_llama(folder: Path) -> Planned:
    """Make the model and plan it."""
    model_folder = make_decoder(folder / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder)
    names = tuple(name for name, _ in model.named_modules())
    plan = plan_of(find_targets(model, TARGETS), RANKS)
    config = build_adapter_config(
        plan, base_model=str(model_folder), task_type="CAUSAL_LM", module_names=names
    )
    return Planned(model_folder, plan, config, names)
