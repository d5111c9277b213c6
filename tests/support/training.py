"""Tiny evaluations that really train: models, rows, arms, and a training loop by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from fimlora.allocation import allocate
from fimlora.plan import Budget, RankPlan, TargetModule
from fimlora.scores import Scores
from fimlora_contract.references import Columns
from fimlora_jobs.datasets.columns import find_fields
from fimlora_jobs.datasets.table import Rows, inline_rows
from fimlora_worker.evaluation.arms import Arm
from fimlora_worker.evaluation.settings import EvaluationSettings
from fimlora_worker.evaluation.split import hold_out
from fimlora_worker.evaluation.task import Task, task_for
from fimlora_worker.inputs.base_model import BaseModel
from fimlora_worker.inputs.examples import Encoder
from fimlora_worker.inputs.heads import HeadTask, ModelRequest
from fimlora_worker.inputs.model_cache import ModelCache
from fimlora_worker.inputs.models import load_tokenizer, read_config
from support.model_folders import WORDS

LENGTHS = (30, 9, 7, 3)
SETTINGS: dict[str, Any] = {
    "arms": ("uniform", "random", "fim"),
    "learning_rates": (1e-2, 2e-2),
    "seeds": (0, 1),
    "tuning_seeds": (7,),
    "n_steps": 6,
    "batch_size": 4,
    "n_points": 3,
    "max_length": 24,
    "held_out_share": 0.4,
}


def make_rows(
    n: int, *, label: str | None = "class", prompt: bool = False
) -> list[dict[str, Any]]:
    """Rows of uneven length; the class is told by the first word, the amount by the length."""
    random, rows = np.random.RandomState(0), []
    for i in range(n):
        length = LENGTHS[i % len(LENGTHS)]
        words = [f"w{i % 3}", *random.choice(WORDS[5:], size=length)]
        if prompt:
            rows.append(
                {"prompt": " ".join(words[:3]), "completion": " " + " ".join(words[3:])}
            )
        else:
            rows.append({"text": " ".join(words)})
            if label:
                rows[-1]["label"] = i % 3 if label == "class" else length + 0.5
    return rows


def make_task(
    folder: Path,
    rows: Sequence[dict[str, Any]],
    *,
    own: Rows | None = None,
    made: dict[str, Arm] | None = None,
    **changes: Any,
) -> Task:
    """The task of an evaluation on a model in a folder, with arms that are no measurement."""
    settings = EvaluationSettings(**{**SETTINGS, **changes})
    table = inline_rows(rows)
    fields = find_fields(table.names, columns=Columns())
    split = hold_out(table, fields, settings, own=own)
    tokenizer = load_tokenizer(folder)
    config = read_config(folder)
    is_pair = config.is_encoder_decoder
    task = "seq2seq_lm" if is_pair else fields.task
    model = base_model(folder, config, task, tokenizer.pad_token_id, split.labels)
    encoder = Encoder(tokenizer, fields, settings.max_length, split.labels, is_pair=is_pair)
    return task_for(settings, made or make_arms(model), model, table, own, encoder)


def base_model(
    folder: Path, config: Any, task: HeadTask, pad_id: int, labels: Any
) -> BaseModel:
    request = ModelRequest(
        digest=str(folder),
        task=task,
        dtype="float32",
        device="cpu",
        n_outputs=labels.n_outputs if labels else None,
        problem_type=labels.problem_type if labels else None,
    )
    cache = ModelCache(limit_bytes=10**8)
    return BaseModel(folder, config, request, pad_id, cache)


def make_arms(model: BaseModel) -> dict[str, Arm]:
    """Uniform, random, and one whose scores grow with depth, at one budget in parameters."""
    modules = tuple(
        TargetModule(name, module.in_features, module.out_features)
        for name, module in model.outline().named_modules()
        if isinstance(module, nn.Linear) and "layer" in name
    )
    scores = Scores(modules, {m.name: float(i + 1) for i, m in enumerate(modules)})
    budget = Budget("parameters", 4 * sum(m.cost for m in modules))

    def solve(rule: str, seed: int = 0) -> RankPlan:
        return allocate(scores, budget, rule=rule, seed=seed)

    return {
        "uniform": Arm("uniform", (solve("uniform"),)),
        "random": Arm("random", (solve("random", 0), solve("random", 1))),
        "fim": Arm("fim", (solve("proportional"),)),
    }


def by_hand(
    loaded: nn.Module,
    plan: RankPlan,
    batches: Sequence[Any],
    starts: Any,
    *,
    rate: float,
    n_warmup: int,
    head: Sequence[str] = (),
) -> nn.Module:
    """Train with PEFT and a loop, from given A."""
    ranks = {name: rank for name, rank in plan.ranks.items() if rank}
    config = LoraConfig(
        target_modules=list(ranks),
        rank_pattern=ranks,
        alpha_pattern={name: plan.scale * rank for name, rank in ranks.items()},
        modules_to_save=list(head) or None,
    )
    model: Any = get_peft_model(loaded, config)
    for name, A in starts.items():
        layer = model.base_model.model.get_submodule(name)
        layer.lora_A["default"].weight.data.copy_(A)
    return loop(model, batches, rate=rate, n_warmup=n_warmup)


def loop(model: Any, batches: Sequence[Any], *, rate: float, n_warmup: int) -> nn.Module:
    """Train what requires gradients: AdamW, clipping at 1, a rate that rises and falls in lines."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, weight_decay=0.0)
    model.train()
    for step, batch in enumerate(batches):
        rising = step / max(1, n_warmup)
        falling = (len(batches) - step) / max(1, len(batches) - n_warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(rising if step < n_warmup else 1.0, falling)
        optimizer.zero_grad()
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    return model
