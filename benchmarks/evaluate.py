"""Rank patterns trained side by side on the demonstration's task, and the verdict on them.

    python benchmarks/evaluate.py                      # 10 seeds; an hour or two on two cores
    python benchmarks/evaluate.py --quick --arms fim   # a first look
    python benchmarks/evaluate.py --judge              # judge again what has been trained

MiniLM learns which package of Python's standard library a docstring is from. Each run is kept in
``runs.csv`` and ``curves.csv`` as soon as it ends, and is not repeated when the script is started
again. All arms train the same parameters from one start, each at its own best learning rate.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # the demonstration is in no package
from demo.base_model import find_minilm
from demo.docstrings import build_rows

from fimlora import Budget, allocate, measure, score
from fimlora.measuring.head.resident import fit_head
from fimlora_contract.jobs import Job, JobKind, JobStatus
from fimlora_contract.verdicts import EvaluationResult
from fimlora_jobs.datasets.columns import TextFields
from fimlora_jobs.datasets.table import Rows, inline_rows
from fimlora_service.reports.evaluation_report import evaluation_report
from fimlora_service.reports.pages import render
from fimlora_worker.evaluation.arms import Arm
from fimlora_worker.evaluation.csv_files import curves_csv, read_runs, runs_csv
from fimlora_worker.evaluation.judgement import Judgement
from fimlora_worker.evaluation.runs import RunResult
from fimlora_worker.evaluation.schedule import next_runs
from fimlora_worker.evaluation.settings import EvaluationSettings, default_settings
from fimlora_worker.evaluation.split import Split, hold_out
from fimlora_worker.evaluation.task import Task, task_for
from fimlora_worker.evaluation.training import train
from fimlora_worker.evaluation.verdict import judge
from fimlora_worker.inputs.base_model import BaseModel
from fimlora_worker.inputs.calibration_data import PaddedBatches, draw
from fimlora_worker.inputs.examples import Encoder
from fimlora_worker.inputs.heads import ModelRequest
from fimlora_worker.inputs.model_cache import ModelCache
from fimlora_worker.inputs.models import load_tokenizer, read_config

FIELDS = TextFields(text="text", label="label")
TASK = "sequence_classification"
MEAN_RANK = 2
HEAD_ROWS, CALIBRATION_ROWS, CALIBRATION_BATCH = 1024, 256, 8
OPTIONS: dict[str, dict[str, Any]] = {"spectral": {"r_min": 0}}  # others: the paper's bounds


def make_arms(
    model: BaseModel, split: Split, encoder: Encoder, settings: EvaluationSettings
) -> dict[str, Arm]:
    """Measure on training rows, under a fitted head, and solve each arm at what uniform spends."""
    examples = draw(split.train, encoder, n_examples=HEAD_ROWS, seed=0).examples
    loaded, drawn, pad_id = model.load(), model.drawn, model.pad_token_id or 0
    fit_head(loaded, PaddedBatches(examples, batch_size=64, pad_id=pad_id), drawn=drawn)
    batches = PaddedBatches(
        examples[:CALIBRATION_ROWS], batch_size=CALIBRATION_BATCH, pad_id=pad_id
    )
    statistics = measure(
        loaded, batches, exclude_modules=sorted(drawn), n_batches=len(batches), record="spectra"
    )
    model.unload()
    budget = Budget("parameters", MEAN_RANK * sum(m.cost for m in statistics.modules))

    def arm(name: str) -> Arm:
        seeds = settings.seeds if name == "random" else (0,)
        scores = score(statistics, method=name)
        options = OPTIONS.get(name, {})
        return Arm(name, tuple(allocate(scores, budget, seed=s, **options) for s in seeds))

    return {name: arm(name) for name in settings.arms}


def make_task(settings: EvaluationSettings) -> Task:
    rows: Rows = inline_rows(build_rows())
    split, folder = hold_out(rows, FIELDS, settings), find_minilm()
    tokenizer = load_tokenizer(folder)
    assert split.labels
    request = ModelRequest(
        digest="minilm",
        task=TASK,
        dtype="float32",
        device="cpu",
        n_outputs=split.labels.n_outputs,
        problem_type=split.labels.problem_type,
    )
    cache = ModelCache(limit_bytes=2**30)
    model = BaseModel(folder, read_config(folder), request, tokenizer.pad_token_id, cache)
    encoder = Encoder(tokenizer, FIELDS, settings.max_length, split.labels)
    arms = make_arms(model, split, encoder, settings)
    return task_for(settings, arms, model, rows, None, encoder)


def load_results(folder: Path) -> list[RunResult]:
    if not (folder / "runs.csv").exists():
        return []
    return read_runs((folder / "runs.csv").read_text(), (folder / "curves.csv").read_text())


def keep(results: Sequence[RunResult], folder: Path) -> None:
    """Write both tables anew, the runs last: a run without a curve is never read."""
    for name, text in (("curves.csv", curves_csv(results)), ("runs.csv", runs_csv(results))):
        fresh = folder / f".{name}"
        fresh.write_text(text)
        fresh.replace(folder / name)


def train_all(task: Task, folder: Path) -> list[RunResult]:
    results = load_results(folder)
    while waiting := next_runs(task.settings, results):
        spec, started = waiting[0], time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            result = train(spec, task, folder=Path(scratch), on_step=lambda *_: None)
        results.append(result)
        keep(results, folder)
        took = time.monotonic() - started
        print(
            f"{len(results):3} {spec.key:32} loss {result.loss:.4f}  {took:.0f} s", flush=True
        )
    return results


def describe(task: Task, folder: Path) -> None:
    """Write down what is trained: settings and rank patterns."""
    plans = {
        name: [
            {"parameters": plan.spent.parameters, "ranks": dict(plan.ranks)}
            for plan in arm.plans
        ]
        for name, arm in task.arms.items()
    }
    about = {"settings": task.settings.to_json(), "plans": plans}
    (folder / "arms.json").write_text(json.dumps(about, indent=1) + "\n")


def report_of(judged: Judgement) -> bytes:
    """The page that the service would draw of it."""
    found = EvaluationResult.model_validate({"digest": "", "artifacts": [], **judged.to_json()})
    names = {"base_model": {"name": "MiniLM"}, "dataset": {"name": "docstrings of packages"}}
    job = Job(
        id="benchmark", kind=JobKind.EVALUATION, status=JobStatus.SUCCEEDED, attempt=1,
        created_at=datetime.now(UTC), request={}, resolved=names,
    )  # fmt: skip
    return render(evaluation_report(job, found))


def show(judged: Judgement, folder: Path) -> None:
    (folder / "report.html").write_bytes(report_of(judged))
    for arm in judged.arms:
        rates = "  ".join(f"{each.rate:g}: {each.loss:.4f}" for each in arm.rates)
        found = "  ".join(
            f"{name} {s.mean:.4f} +- {s.spread:.4f}" for name, s in arm.metrics.items()
        )
        print(f"{arm.name:10} best {arm.best_rate}  {found}\n{'':10} tuning {rates}")
    for d in judged.differences:
        print(
            f"{d.metric:9} {d.arm:9} - {d.reference:8} {d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}]"
            f"  p {d.p:.3f}, adjusted {d.p_holm:.3f}; better in {d.n_better} of {d.n}"
        )
    print(judged.levers.sentence)
    print(f"{judged.n_runs} runs, {judged.seconds / 60:.0f} minutes of training and testing")
    print("\n".join([judged.verdict.sentence, *judged.verdict.notes]))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--arms", nargs="+", default=["fim", "spectral"])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--judge", action="store_true", help="train nothing")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(__file__).parent / "results" / "evaluate-docstrings",
    )
    return parser.parse_args()


def settings_of(arguments: argparse.Namespace) -> EvaluationSettings:
    arms = ("uniform", "random", *arguments.arms)
    if arguments.quick:
        return default_settings(arms, task=TASK, quick=True)
    return default_settings(
        arms,
        task=TASK,
        learning_rates=(4e-3, 8e-3, 16e-3),
        seeds=tuple(range(arguments.seeds)),
        tuning_seeds=(1_000_000,),
        n_steps=48,
        max_length=24,
        n_held_out=192,
        n_points=3,
    )


def main() -> None:
    arguments = parse()
    torch.set_num_threads(1)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    settings = settings_of(arguments)
    n_tested = None
    if arguments.judge:
        results = load_results(arguments.folder)
    else:
        task = make_task(settings)
        describe(task, arguments.folder)
        results, n_tested = train_all(task, arguments.folder), len(task.data.held_out)
    show(judge(settings, results, n_tested=n_tested), arguments.folder)


if __name__ == "__main__":
    main()
