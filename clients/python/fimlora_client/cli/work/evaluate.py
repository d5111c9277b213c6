"""``fimlora evaluate``: whether ranks help on one's own task, found out by training."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fimlora_client.aio.evaluations import LONGEST_WAIT_S
from fimlora_client.blocking.client import Client
from fimlora_client.blocking.evaluations import EvaluationHandle
from fimlora_client.bodies import build_evaluation
from fimlora_client.cli.common import options, request_fields
from fimlora_client.cli.common.console import duration, err, out, say, show_json
from fimlora_client.cli.common.constraints import constraints_of, experts_of
from fimlora_client.cli.common.context import client_of
from fimlora_client.cli.common.inputs import (
    checked_model,
    columns_of,
    names_of,
    pairs_of,
    parameters_asked,
    split_names,
    with_datasets,
)
from fimlora_client.cli.common.progress import JobProgress, left_running
from fimlora_client.cli.work.estimate import show_estimate
from fimlora_client.cli.work.findings import show_findings
from fimlora_client.files import check_writable
from fimlora_contract.jobs import CalibrationResult
from fimlora_contract.verdicts import EvaluationResult

ARMS, TRAINING, HELD_OUT = "Arms", "Training", "Held-out rows"


def _option(*names: str, panel: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, help=help, show_default=False, **more)


Methods = Annotated[
    str | None,
    _option(
        "--methods",
        panel=ARMS,
        help="Methods to train, with commas between (fim; none with --plan). uniform and "
        "random always are.",
    ),
]
Plans = Annotated[
    list[str] | None,
    _option(
        "--plan",
        panel=ARMS,
        help="NAME=PLAN: a digest, the id of the job that made it, or NAME:TAG of a pin. Its "
        "parameters are the budget if none is given. Repeatable.",
    ),
]
Scale = Annotated[
    float | None,
    _option(
        "--scale", panel=ARMS, help="Scale (alpha / rank) of all arms; plans must have it (2)."
    ),
]
# There for who is used to them from other commands: the refusal says why all arms have one scale.
NoAlpha = Annotated[float | None, _option("--alpha", panel=ARMS, help="None.", hidden=True)]
NoRsLora = Annotated[bool, _option("--rslora", panel=ARMS, help="None.", hidden=True)]
Seeds = Annotated[
    int | None, _option("--seeds", panel=TRAINING, help="Final runs per arm (5; quick: 3).")
]
Steps = Annotated[
    int | None, _option("--steps", panel=TRAINING, help="Steps of a run (64; quick: 32).")
]
Rates = Annotated[
    str | None,
    _option(
        "--learning-rates",
        panel=TRAINING,
        help="The grid every arm is tuned on, with commas between; by the task if left out.",
    ),
]
BatchSize = Annotated[
    int | None,
    _option(
        "--batch-size",
        panel=TRAINING,
        help="Rows per step of training (16); measuring has its own, 8.",
    ),
]
MaxLength = Annotated[
    int | None,
    _option(
        "--max-length",
        panel=TRAINING,
        help="Tokens per row in training (64); measuring has its own, 512.",
    ),
]
Quick = Annotated[
    bool, _option("--quick", panel=TRAINING, help="A first look: fewer rates, seeds, steps.")
]
EvalSplit = Annotated[
    str | None, _option("--eval-split", panel=HELD_OUT, help="Split of the hub dataset.")
]
EvalDataset = Annotated[
    str | None,
    _option("--eval-dataset", panel=HELD_OUT, help="Another dataset, named as DATASET is."),
]
EvalShare = Annotated[
    float | None,
    _option("--eval-share", panel=HELD_OUT, help="Part of the rows, if nothing else (0.2)."),
]
EvalRows = Annotated[
    int | None, _option("--eval-rows", panel=HELD_OUT, help="At most (256; quick: 128).")
]
Output = Annotated[
    Path | None,
    _option(
        "--output",
        "-o",
        panel=options.RUN,
        help="Write report.html, evaluation.json, runs.csv and curves.csv into this folder.",
    ),
]
Timeout = Annotated[
    float, _option("--timeout", panel=options.RUN, help="Seconds to wait at most (21600).")
]


def evaluate(
    ctx: typer.Context,
    model: options.Model,
    dataset: options.Dataset,
    budget: options.Budget = None,
    budget_parameters: options.BudgetParameters = None,
    budget_fraction: options.BudgetFraction = None,
    budget_bytes: options.BudgetBytes = None,
    methods: Methods = None,
    plan: Plans = None,
    scale: Scale = None,
    alpha: NoAlpha = None,
    rslora: NoRsLora = False,
    quick: Quick = False,
    seeds: Seeds = None,
    steps: Steps = None,
    learning_rates: Rates = None,
    batch_size: BatchSize = None,
    max_length: MaxLength = None,
    retain: options.Retain = None,
    eval_split: EvalSplit = None,
    eval_dataset: EvalDataset = None,
    eval_share: EvalShare = None,
    eval_rows: EvalRows = None,
    target_modules: options.TargetModules = None,
    exclude_modules: options.ExcludeModules = None,
    target_parameters: options.TargetParameters = None,
    modules_to_save: options.ModulesToSave = None,
    r_min: options.RMin = None,
    r_max: options.RMax = None,
    multiple_of: options.MultipleOf = None,
    layers: options.Layers = None,
    group: options.Group = None,
    rank_menu: options.RankMenu = None,
    per_type: options.PerType = None,
    max_lora_rank: options.MaxLoraRank = None,
    experts: options.SelectedExperts = None,
    aggregation: options.Aggregation = None,
    seed: options.Seed = None,
    batches: options.Batches = None,
    tolerance: options.Tolerance = None,
    max_batches: options.MaxBatches = None,
    estimator: options.Estimator = None,
    head: options.Head = None,
    dtype: options.Dtype = None,
    executor: options.Executor = None,
    task: options.Task = None,
    chat_labels: options.ChatLabels = None,
    column: options.Column = None,
    split: options.Split = None,
    output: Output = None,
    wait: options.Wait = True,
    timeout: Timeout = LONGEST_WAIT_S,
    priority: options.Priority = None,
    deadline: options.Deadline = None,
    webhook: options.Webhook = None,
    label: options.Label = None,
    force: options.Force = False,
    estimate: options.Estimate = False,
    as_json: options.AsJson = False,
) -> None:
    """Train plans beside uniform and random ranks, and say which helps on this task.

    All arms train equally many parameters, on the same rows in the same order, each at the
    best of the same learning rates. The verdict may be to use uniform ranks: it often is.
    Selected experts of a mixture are trained beside as many random ones, and beside all.

    [bold]Examples[/bold]

      fimlora evaluate minilm reviews.jsonl --budget 8 --quick
      fimlora evaluate minilm train.jsonl --eval-dataset test.jsonl --budget 8 -o findings
      fimlora evaluate minilm reviews.jsonl --budget 8 --methods fim,spectral --seeds 10
      fimlora evaluate minilm reviews.jsonl --plan mine=reviews:prod
      fimlora evaluate minilm reviews.jsonl --budget 8 --estimate
    """
    client = client_of(ctx)
    plans = _plans(pairs_of("--plan", "NAME=PLAN", plan))
    amounts = (budget, budget_parameters, budget_fraction, budget_bytes)
    fields: dict[str, Any] = {
        "base_model": checked_model(model),
        "budget": _budget(client, plans, amounts),
        "target_modules": split_names(target_modules),
        "calibration": request_fields.given(
            n_batches=request_fields.batches_of(batches), tolerance=tolerance, max_batches=max_batches, estimator=estimator, head=head, dtype=dtype, executor=executor, task=task, seed=seed,
            chat_labels=chat_labels,
        ),
        "allocation": request_fields.given(
            r_min=r_min, r_max=r_max, multiple_of=multiple_of, n_layers=layers,
            aggregation=aggregation, seed=seed,
            **constraints_of(group, rank_menu, per_type, max_lora_rank), **experts_of(experts),
        ),
        "adapter": request_fields.scaling_of(scale, alpha, rslora),
        "quick": quick,
        "force": force,
        **request_fields.given(
            methods=split_names(methods), plans=plans, seeds=seeds, steps=steps,
            learning_rates=_rates(learning_rates), batch_size=batch_size,
            max_length=max_length, eval_split=eval_split, eval_share=eval_share,
            eval_rows=eval_rows, exclude_modules=split_names(exclude_modules),
            target_parameters=parameters_asked(target_parameters),
            modules_to_save=names_of(modules_to_save),
            priority=priority, deadline_s=deadline, webhook=webhook,
            metadata=pairs_of("--label", "KEY=VALUE", label),
        ),
    }  # fmt: skip
    if output:
        check_writable(output)  # not only when everything has been trained
    more = request_fields.given(columns=columns_of(column), split=split)
    named = {"dataset": dataset, "eval_dataset": eval_dataset, "retain": retain}
    request = with_datasets(client, build_evaluation, fields, named, more)
    if estimate:
        show_estimate(client.evaluations.estimate(request), as_json=as_json)
        return
    handle = client.evaluate(request)
    if wait:
        _show(handle, _wait(handle, timeout=timeout), as_json=as_json)
        _keep(handle, output)
    else:
        _leave(handle, as_json=as_json)


def _plans(named: dict[str, str] | None) -> dict[str, str] | None:
    """Plans by name; a pin is NAME:TAG to commands, and NAME/TAG on the wire."""
    return named and {
        name: plan if plan.startswith("sha256:") else plan.replace(":", "/")
        for name, plan in named.items()
    }


def _budget(
    client: Client, plans: dict[str, str] | None, amounts: tuple[Any, ...]
) -> dict[str, Any]:
    """The budget that was asked for, or what the first plan spends."""
    if plans and all(amount is None for amount in amounts):
        return {"parameters": _spent(client, next(iter(plans.values())))}
    return request_fields.budget_of(*amounts)


def _spent(client: Client, reference: str) -> int:
    if reference.startswith("sha256:"):
        rank_map = client.rank_patterns.retrieve(reference).pattern.rank_map
    elif "/" in reference:
        rank_map = client.rank_patterns.pinned(*reference.split("/", 1)).pattern.rank_map
    else:
        result = client.jobs.retrieve(reference).result
        if not isinstance(result, CalibrationResult):
            raise typer.BadParameter(f"--plan {reference}: that job has no plan")
        rank_map = result.rank_map
    return rank_map.spent["parameters"]


def _wait(handle: EvaluationHandle, *, timeout: float) -> EvaluationResult:
    if handle.cached:
        say(("✓ ", "green"), f"answered from the cache by {handle.id}")
    with left_running(handle.id), JobProgress(err()) as progress:
        return handle.wait(timeout=timeout, poll_every=0.5, on_progress=progress)


def _show(handle: EvaluationHandle, result: EvaluationResult, *, as_json: bool) -> None:
    if as_json:
        show_json(handle.job.model_dump(mode="json"))
        return
    if not handle.cached:
        trained = f"{result.n_runs} runs, {duration(result.seconds)} of training"
        say(("✓ ", "green"), f"{handle.id} succeeded: {trained}")
    show_findings(result)


def _keep(handle: EvaluationHandle, folder: Path | None) -> None:
    if folder:
        files = handle.download(folder)
        say(("✓ ", "green"), f"{', '.join(sorted(files))} in {folder}")
    else:
        say(
            ("  keep the report with  ", "dim"),
            f"fimlora report {handle.id} --output report.html",
        )


def _leave(handle: EvaluationHandle, *, as_json: bool) -> None:
    if as_json:
        show_json(handle.job.model_dump(mode="json"))
        return
    out().print(handle.id)
    say(("  look at it with  ", "dim"), f"fimlora show {handle.id}")


def _rates(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(rate) for rate in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"--learning-rates {text!r} are not numbers with commas between, as 1e-3,2e-3"
        ) from None
