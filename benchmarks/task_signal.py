"""How much of a plan is the task: the share of all ranks that move when the labels mean nothing.

    python benchmarks/task_signal.py                     # MiniLM on the CPU, some ten minutes

For each method, with a head as it was drawn and with one that was fitted first, and for two tasks
of the standard library: docstrings by package, functions by package. A plan of one half of the
rows is held against one of other rows of the task, against one of the same rows with their labels
permuted, and against that of the other task. Each is measured anew, under a head of its own labels.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "worker"), str(ROOT / "clients" / "python"), str(ROOT)]
from benchmarks.function_sources import build_rows as function_rows  # noqa: E402
from demo.base_model import find_minilm  # noqa: E402
from demo.docstrings import build_rows as docstring_rows  # noqa: E402

from fimlora import Budget, RankPlan, Statistics, allocate, fit_head, measure, score  # noqa: E402
from fimlora.allocation.distance import plans_apart  # noqa: E402
from fimlora.methods.registry import METHODS, needs_null, records_needed  # noqa: E402

Row = dict[str, str]
TASKS = {"docstrings": docstring_rows, "functions": function_rows}
CONTROLS = {"uniform", "random"}
MEAN_RANK = 4
TARGETS = [
    "query",
    "key",
    "value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
]


@dataclass(frozen=True)
class Options:
    """What is the same for all runs."""

    folder: Path
    rows: int
    head_rows: int
    tokens: int
    batch: int
    methods: tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=256, help="rows that are measured")
    parser.add_argument(
        "--head-rows", type=int, default=1024, help="rows that a head is fitted on"
    )
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--heads", nargs="+", default=["fresh", "fitted"])
    methods = [n for n, m in METHODS.items() if n not in CONTROLS and not m.needs_retain]
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    options = Options(
        find_minilm(), args.rows, args.head_rows, args.tokens, args.batch, tuple(args.methods)
    )
    started = time.monotonic()
    data = {task: build() for task, build in TASKS.items()}
    print(
        f"share of all ranks that move; MiniLM, {options.rows} rows of at most {options.tokens} "
        f"tokens, mean rank {MEAN_RANK} at equal parameters"
    )
    for task, rows in data.items():
        print(f"{task}: {len(rows):,} rows, {len({row['label'] for row in rows})} classes")
    print(f"{'head':8} {'method':18} {'task':12} other rows  shuffled  other task")
    for head in args.heads:
        report(
            head, {task: plans_of(rows, head, options) for task, rows in data.items()}, options
        )
    print(f"{time.monotonic() - started:.0f} s")


def report(
    head: str, plans: dict[str, dict[str, dict[str, RankPlan]]], options: Options
) -> None:
    """A line for each method and task."""
    one, other = (plans[task] for task in TASKS)
    for method in options.methods:
        tasks_apart = plans_apart(one["plan"][method], other["plan"][method])
        for task, found in plans.items():
            rows, labels = (
                plans_apart(found["plan"][method], found[name][method])
                for name in ("other rows", "shuffled")
            )
            print(
                f"{head:8} {method:18} {task:12} {rows:10.3f} {labels:9.3f} {tasks_apart:11.3f}",
                flush=True,
            )


def plans_of(
    rows: Sequence[Row], head: str, options: Options
) -> dict[str, dict[str, RankPlan]]:
    """Plans by method: of one half of the rows, of the other, and of permuted labels."""
    classes = sorted({row["label"] for row in rows})
    draw = torch.Generator().manual_seed(0)
    order = torch.randperm(len(rows), generator=draw).tolist()
    half = [rows[i] for i in order[: len(rows) // 2]]
    rest = [rows[i] for i in order[len(rows) // 2 :]]
    labels = [half[i]["label"] for i in torch.randperm(len(half), generator=draw).tolist()]
    shuffled = [row | {"label": label} for row, label in zip(half, labels, strict=True)]
    return {
        name: plans_from(measured(some, classes, head, options), options)
        for name, some in (("plan", half), ("other rows", rest), ("shuffled", shuffled))
    }


def plans_from(statistics: Statistics, options: Options) -> dict[str, RankPlan]:
    """The plan of each method."""
    cost = MEAN_RANK * sum(module.d_in + module.d_out for module in statistics.modules)
    plans = {}
    for method in options.methods:
        scores = score(statistics, method)
        r_min = 0 if scores.rule == "spectral" else 1
        plans[method] = allocate(
            scores, Budget("parameters", cost), r_min=r_min, r_max=2 * MEAN_RANK
        )
    return plans


def measured(
    rows: Sequence[Row], classes: Sequence[str], head: str, options: Options
) -> Statistics:
    """Measure a fresh model on the first rows, with a head that all rows may make."""
    transformers.set_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        options.folder, num_labels=len(classes)
    ).eval()
    if head == "fitted":
        by_length = sorted(rows[: options.head_rows], key=lambda row: -len(row["text"]))
        fit_head(model, batches(by_length, classes, options))
    return measure(
        model,
        batches(rows[: options.rows], classes, options),
        target_modules=r".*encoder\.layer\..*(" + "|".join(map(ending, TARGETS)) + ")",
        n_batches=options.rows,
        record=records_needed(*options.methods),
        **({"null": True} if needs_null(*options.methods) else {}),
    )


def ending(name: str) -> str:
    """A dotted name, in an expression."""
    return name.replace(".", r"\.")


def batches(
    rows: Sequence[Row], classes: Sequence[str], options: Options
) -> list[dict[str, torch.Tensor]]:
    """Rows as the model takes them, in their order."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.folder)
    found = []
    for start in range(0, len(rows), options.batch):
        some = rows[start : start + options.batch]
        texts = [row["text"] for row in some]
        batch = tokenizer(
            texts, truncation=True, max_length=options.tokens, padding=True, return_tensors="pt"
        )
        labels = torch.tensor([classes.index(row["label"]) for row in some])
        found.append({**batch, "labels": labels})
    return found


if __name__ == "__main__":
    main()
