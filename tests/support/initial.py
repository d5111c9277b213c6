"""Adapters with initial weights of a tiny model's own gradients, and these in full by autograd."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fimlora import RankPlan, Statistics, find_targets, measure, write_adapter
from fimlora.model.targets import head_tensors
from support.adapters import task_of
from support.models import make_batch, tiny
from support.plans import plan_of
from support.reference import weight_gradients_by_example

LENGTHS = ([30, 9, 7, 3], [6, 21, 3])
RANKS = [3, 7, 1, 5]
SEED = 3
RECORD = ("gradient_factors", "projected_gradient")


@dataclass(frozen=True)
class Case:
    """A tiny model, a plan for it, and what was measured of it.

    Attributes:
        model: The model.
        plan: The plan.
        statistics: What was measured.
        gradients: The mean gradient of each module over all examples, in float64 (O I).
        batch: A batch to run.
    """

    model: nn.Module
    plan: RankPlan
    statistics: Statistics
    gradients: dict[str, Tensor]
    batch: dict[str, Tensor]


def case_of(name: str, *, scale: int | float = 2, ranks: list[int] = RANKS) -> Case:
    """Measure a tiny model."""
    model, targets = tiny(name)
    batches = [make_batch(name, lengths, seed=i) for i, lengths in enumerate(LENGTHS)]
    modules = find_targets(model, targets)
    by_example = weight_gradients_by_example(model.double(), batches, modules)
    model.float()
    statistics = measure(model, batches, target_modules=targets, record=RECORD, seed=SEED)
    plan = plan_of(modules, ranks, scale=scale)
    means = {name: gradients.mean(dim=0) for name, gradients in by_example.items()}
    return Case(model, plan, statistics, means, batches[0])


def write_case(case: Case, name: str, folder: Path, *, init: str, **options: Any) -> None:
    """Write the adapter, proved on the model as it is written."""
    options = {"statistics": case.statistics, "seed": SEED, "model": case.model} | options
    write_adapter(
        case.plan,
        folder,
        base_model="org/model",
        task_type=task_of(name),
        init=init,
        head=head_tensors(case.model),
        **options,
    )
