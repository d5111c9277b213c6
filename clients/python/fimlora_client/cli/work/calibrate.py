"""``fimlora calibrate``: ask for a plan, watch it being made, look at it, keep it."""

from pathlib import Path
from typing import Any

import typer

from fimlora_client.blocking.handle import JobHandle
from fimlora_client.bodies import build_request
from fimlora_client.cli.common import options, request_fields
from fimlora_client.cli.common.console import err, out, say, show_json
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
from fimlora_client.cli.common.outcomes import took
from fimlora_client.cli.common.progress import JobProgress, left_running
from fimlora_client.cli.results.pins import read_pin, say_pinned
from fimlora_client.cli.work.estimate import show_estimate
from fimlora_client.files import check_writable
from fimlora_client.rank_map import rank_map_table
from fimlora_client.results import Result


def calibrate(
    ctx: typer.Context,
    model: options.Model,
    dataset: options.Dataset,
    budget: options.Budget = None,
    budget_parameters: options.BudgetParameters = None,
    budget_fraction: options.BudgetFraction = None,
    budget_bytes: options.BudgetBytes = None,
    target_modules: options.TargetModules = None,
    exclude_modules: options.ExcludeModules = None,
    target_parameters: options.TargetParameters = None,
    modules_to_save: options.ModulesToSave = None,
    method: options.Method = None,
    r_min: options.RMin = None,
    r_max: options.RMax = None,
    multiple_of: options.MultipleOf = None,
    layers: options.Layers = None,
    group: options.Group = None,
    rank_menu: options.RankMenu = None,
    per_type: options.PerType = None,
    max_lora_rank: options.MaxLoraRank = None,
    experts: options.Experts = None,
    aggregation: options.Aggregation = None,
    seed: options.Seed = None,
    batches: options.Batches = None,
    tolerance: options.Tolerance = None,
    max_batches: options.MaxBatches = None,
    batch_size: options.BatchSize = None,
    max_length: options.MaxLength = None,
    estimator: options.Estimator = None,
    signal: options.Signal = None,
    chat_labels: options.ChatLabels = None,
    head: options.Head = None,
    head_rows: options.HeadRows = None,
    dtype: options.Dtype = None,
    executor: options.Executor = None,
    shards: options.Shards = None,
    adapter: options.TrainedAdapter = None,
    task: options.Task = None,
    column: options.Column = None,
    split: options.Split = None,
    retain: options.Retain = None,
    layout: options.Layout = None,
    scale: options.Scale = None,
    alpha: options.Alpha = None,
    rslora: options.RsLora = False,
    weights: options.Weights = False,
    init: options.Init = None,
    output: options.Output = None,
    pin: options.Pin = None,
    wait: options.Wait = True,
    timeout: options.Timeout = 3600,
    priority: options.Priority = None,
    deadline: options.Deadline = None,
    webhook: options.Webhook = None,
    label: options.Label = None,
    force: options.Force = False,
    estimate: options.Estimate = False,
    as_json: options.AsJson = False,
) -> None:
    """Measure a model on a dataset and share out a rank budget.

    [bold]Examples[/bold]

      fimlora calibrate minilm reviews.jsonl --budget 8 --output adapter
      fimlora calibrate org/model org/dataset --budget 2M
      fimlora calibrate minilm my-rows --budget 16 --r-max 64 -t query,value
      fimlora calibrate minilm my-rows --budget 8 --estimate
      fimlora calibrate minilm my-rows --budget 8 --pin my-task:prod
      fimlora calibrate minilm my-rows --budget 8 --method vila --retain general-rows
    """
    fields: dict[str, Any] = {
        "base_model": checked_model(model),
        "budget": request_fields.budget_of(budget, budget_parameters, budget_fraction, budget_bytes),
        "target_modules": split_names(target_modules),
        **request_fields.given(
            exclude_modules=split_names(exclude_modules),
            target_parameters=parameters_asked(target_parameters),
            modules_to_save=names_of(modules_to_save),
        ),
        "calibration": request_fields.given(
            n_batches=request_fields.batches_of(batches), tolerance=tolerance, max_batches=max_batches,
            batch_size=batch_size, max_length=max_length,
            estimator=estimator, signal=signal, chat_labels=chat_labels, dtype=dtype,
            executor=executor, shards=request_fields.shards_of(shards), adapter=adapter, task=task, seed=seed,
            head=head, head_rows=head_rows,
        ),
        "allocation": request_fields.given(
            method=method, r_min=r_min, r_max=r_max, multiple_of=multiple_of, n_layers=layers,
            aggregation=aggregation, seed=seed,
            **constraints_of(group, rank_menu, per_type, max_lora_rank), **experts_of(experts),
        ),
        "adapter": request_fields.given(
            layout=layout, weights=weights or bool(experts and target_parameters) or None, **request_fields.scaling_of(scale, alpha, rslora),
            init=init,
        ),
        "force": force,
        **request_fields.given(
            priority=priority, deadline_s=deadline, webhook=webhook, metadata=pairs_of("--label", "KEY=VALUE", label)
        ),
    }  # fmt: skip
    name_tag = read_pin(pin) if pin else None
    if pin and not wait:
        raise typer.BadParameter("--pin names the result: it needs --wait")
    if output:
        check_writable(output)  # not only when everything has been measured
    client = client_of(ctx)
    more = request_fields.given(columns=columns_of(column), split=split)
    named = {"dataset": dataset, "retain": retain}
    request = with_datasets(client, build_request, fields, named, more)
    if estimate:
        show_estimate(client.estimate(request), as_json=as_json)
        return
    handle = client.calibrate(request)
    if not wait:
        _leave(handle, as_json=as_json)
        return
    show(wait_for(handle, timeout=timeout), as_json=as_json)
    if name_tag:
        client.rank_patterns.pin(*name_tag, job_id=handle.id)
        say_pinned(*name_tag)
    keep(handle, output)


def show(result: Result, *, as_json: bool) -> None:
    """Print a result as a rank map, or its job as JSON."""
    if as_json:
        show_json(result.job.model_dump(mode="json"))
    else:
        out().print(rank_map_table(result.rank_map))


def keep(handle: JobHandle, folder: Path | None) -> None:
    """Write the files of a result into a folder, or say how to."""
    if folder:
        files = handle.download(folder)
        say(("✓ ", "green"), f"{', '.join(sorted(files))} in {folder}")
    else:
        say(("  keep it with  ", "dim"), f"fimlora fetch {handle.id} --output DIR")


def wait_for(handle: JobHandle, *, timeout: float) -> Result:
    """The result of a job, and its progress meanwhile."""
    if handle.cached:
        say(("✓ ", "green"), f"answered from the cache by {handle.id}")
    with left_running(handle.id), JobProgress(err()) as progress:
        result = handle.wait(timeout=timeout, poll_every=0.25, on_progress=progress)
    if not handle.cached:
        say(("✓ ", "green"), f"{handle.id} succeeded{took(result.job)}")
    return result


def _leave(handle: JobHandle, *, as_json: bool) -> None:
    if as_json:
        show_json(handle.job.model_dump(mode="json"))
        return
    out().print(handle.id)
    say(("  look at it with  ", "dim"), f"fimlora show {handle.id}")
