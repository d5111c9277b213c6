"""Whole results as a worker commits them, from made-up statistics and without torch."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fimlora import Budget, Statistics, TargetModule, allocate, score
from fimlora.adapter.config import build_adapter_config
from fimlora.adapter.text_files import rank_map, text_files
from fimlora.confidence.evidence import with_confidence
from fimlora.confidence.signal import source_if_any, with_signal
from fimlora.statistics.options import Estimator
from fimlora.statistics.statistics import HALVES, NULL
from fimlora_contract.digests import digest_bytes, digest_of
from fimlora_jobs.results.store import BINARY, MEDIA_TYPES

KINDS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")


def make_statistics(
    *, n_layers: int = 4, width: int = 64, seed: int = 0, estimator: str = "exact"
) -> Statistics:
    """Statistics of a model whose modules differ in score by orders of magnitude."""
    random = np.random.default_rng(seed)
    modules = tuple(
        TargetModule(f"model.layers.{layer}.{kind}", width, width)
        for layer in range(n_layers)
        for kind in KINDS
    )
    energies = {m.name: random.lognormal(0, 2, m.d_out) for m in modules}
    squares = {m.name: random.lognormal(0, 2, (m.d_out, 8)) for m in modules}
    parts = {m.name: random.dirichlet(np.full(16, 4.0)) for m in modules}  # of the examples
    exact = estimator == "exact"
    return Statistics(
        modules=modules,
        estimator=Estimator(estimator),
        n_examples=16,
        n_batches=4,
        base_parameters=1_000_000,
        loss="sequence_classification",
        dtype="float32",
        scale=2,
        train_mode=False,
        rank=None if exact else 8,
        seed=None if exact else 0,
        row_energies=energies if exact else {},
        example_energies={n: e.sum() * parts[n] for n, e in energies.items()} if exact else {},
        squared_gradients={} if exact else squares,
    )


def with_null_and_halves(statistics: Statistics) -> Statistics:
    """Beside some statistics others of the same modules, as a run with a signal has them."""
    null, first, second = (make_statistics(seed=seed) for seed in (1, 2, 3))
    null = replace(null, null_targets=(16, 15))
    return statistics.with_parts({NULL: null, HALVES[0]: first, HALVES[1]: second})


def make_result(
    data_dir: Path,
    *,
    statistics: Statistics | None = None,
    budget: int | float = 8,
    layout: str = "B",
    method: str = "fim",
    aggregation: str = "mean",
    facts: Mapping[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Put a result into the artefact folder; answers what goes on the job's record."""
    statistics = statistics or make_statistics()
    known = {"engine": "0.1.0", "dataset": {"source": "inline", "digest": "sha256:1"}}
    plan = allocate(
        score(statistics, method, aggregation=aggregation), Budget("rank", budget),
        provenance={**known, **(facts or {})}, scale=statistics.scale, **options,
    )  # fmt: skip
    source = source_if_any(statistics, method, scale=plan.scale, aggregation=aggregation)
    plan = with_signal(plan, source)
    plan = with_confidence(statistics, plan)
    config = build_adapter_config(
        plan,
        base_model="tiny",
        task_type="SEQ_CLS",
        layout=layout,
        target_modules=[kind.rpartition(".")[2] for kind in KINDS],
    )
    files = text_files(plan, config, layout=layout) | {
        "statistics.safetensors": statistics.to_bytes()
    }
    digests = {name: digest_bytes(content) for name, content in files.items()}
    digest = digest_of(digests)
    folder = data_dir / "artifacts" / digest.replace(":", "-")
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return {
        "digest": digest,
        "adapter_config": config,
        "rank_map": rank_map(plan, layout=layout),
        "artifacts": [
            {
                "name": name,
                "digest": digests[name],
                "size": len(files[name]),
                "media_type": MEDIA_TYPES.get(Path(name).suffix, BINARY),
            }
            for name in sorted(files)
        ],
    }
