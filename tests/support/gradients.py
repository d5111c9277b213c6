"""Statistics of gradients that a test makes up, one matrix per example and module."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fimlora import Statistics, TargetModule
from fimlora.statistics.options import Estimator

Gradients = Mapping[str, NDArray[np.float64]]  # (N O I) by module name


def statistics_of(gradients: Gradients, **options: Any) -> Statistics:
    """What a run would record of these gradients, energies, spectra and all."""
    modules = tuple(TargetModule(n, G.shape[2], G.shape[1]) for n, G in gradients.items())
    means = {name: G.mean(axis=0) for name, G in gradients.items()}
    facts: dict[str, Any] = {
        "n_examples": len(next(iter(gradients.values()))),
        "n_batches": 1,
        "base_parameters": 1_000,
        "loss": "custom",
        "dtype": "float64",
        "scale": 2,
        "train_mode": False,
        "rank": None,
        "seed": None,
    }
    return Statistics(
        modules=modules,
        estimator=Estimator.EXACT,
        row_energies={n: np.square(G).sum(axis=(0, 2)) for n, G in gradients.items()},
        example_energies={n: np.square(G).sum(axis=(1, 2)) for n, G in gradients.items()},
        squared_gradients={},
        spectra={n: np.linalg.svd(M, compute_uv=False) for n, M in means.items()},
        mean_energies={n: np.array([np.square(M).sum()]) for n, M in means.items()},
        spectrum_errors={n: np.zeros(1) for n in means},
        **(facts | options),
    )


def noise(*shape: int, seed: int) -> NDArray[np.float64]:
    """Independent normal numbers."""
    return np.random.default_rng(seed).normal(size=shape)
