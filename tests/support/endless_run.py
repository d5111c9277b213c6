"""A run that never ends and saves its sums as often as it can, for tests that kill it."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from fimlora import ProgressFile, measure

WIDTH = 700


def run_endlessly(file: Path, on_resume: Callable[[int, int], None] | None = None) -> None:
    """Measure, or go on measuring from the file; only what ``on_resume`` raises ends it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH))
    model.forward = lambda x: nn.Sequential.forward(model, x)
    batches = ({"x": torch.full((2, WIDTH), 1.0 / (i + 1))} for i in itertools.count())

    def loss_fn(outputs: Tensor, batch: object) -> Tensor:
        return outputs.square().sum(dim=1)

    measure(
        model,
        batches,
        n_batches=10**6,
        progress_file=ProgressFile(file, max_share=math.inf, on_resume=on_resume),
        target_modules=["0"],
        record=["spectra"],
        loss_fn=loss_fn,
    )
