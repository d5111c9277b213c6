"""Raw results as two tables: a row per run, and a row per point of a curve."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

from fimlora_worker.evaluation.runs import RunResult, RunSpec

RUN = ("arm", "learning_rate", "seed", "phase")
FACTS = ("n_steps", "adapter_parameters", "trainable_parameters", "seconds")
CURVE = (*RUN, "step", "loss")


def runs_csv(results: Sequence[RunResult]) -> str:
    """One row per run, its metrics in columns; an empty cell is no number."""
    metrics = list(dict.fromkeys(name for result in results for name in result.metrics))
    return _table(
        (*RUN, *FACTS, *metrics),
        (
            [
                *_run(result.spec),
                *(getattr(result, name) for name in FACTS),
                *(_cell(result.metrics.get(name, math.nan)) for name in metrics),
            ]
            for result in results
        ),
    )


def curves_csv(results: Sequence[RunResult]) -> str:
    """One row per point at which a run was tested."""
    return _table(
        CURVE,
        (
            [*_run(result.spec), step, _cell(loss)]
            for result in results
            for step, loss in result.curve
        ),
    )


def read_runs(runs: str, curves: str) -> list[RunResult]:
    """Read what the two functions above wrote."""
    points: dict[str, list[tuple[int, float]]] = {}
    for row in csv.DictReader(io.StringIO(curves)):
        points.setdefault(_spec(row).key, []).append((int(row["step"]), _number(row["loss"])))
    return [
        RunResult(
            spec=_spec(row),
            curve=tuple(points.get(_spec(row).key, ())),
            metrics={
                name: _number(cell) for name, cell in row.items() if name not in {*RUN, *FACTS}
            },
            adapter_parameters=int(row["adapter_parameters"]),
            trainable_parameters=int(row["trainable_parameters"]),
            seconds=float(row["seconds"]),
            n_steps=int(row["n_steps"]),
        )
        for row in csv.DictReader(io.StringIO(runs))
    ]


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue()


def _run(spec: RunSpec) -> list[Any]:
    return [getattr(spec, name) for name in RUN]


def _spec(row: dict[str, str]) -> RunSpec:
    return RunSpec.from_json(row)


def _cell(value: float) -> Any:
    return value if math.isfinite(value) else ""


def _number(cell: str) -> float:
    return float(cell) if cell else math.nan
