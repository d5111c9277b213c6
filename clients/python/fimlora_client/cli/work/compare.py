"""``fimlora compare``: the plans of several methods side by side, before anything is trained."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from fimlora_client.blocking.client import Client
from fimlora_client.bodies import build_comparison
from fimlora_client.cli.common import options, request_fields
from fimlora_client.cli.common.console import err, make_table, out, say, show_json
from fimlora_client.cli.common.constraints import constraints_of, experts_of
from fimlora_client.cli.common.context import client_of
from fimlora_client.cli.common.inputs import (
    checked_model,
    columns_of,
    names_of,
    parameters_asked,
    split_names,
    with_datasets,
)
from fimlora_client.cli.common.progress import JobProgress, left_running
from fimlora_client.files import check_writable
from fimlora_contract.comparisons import Comparison, ComparisonResult, JobComparison
from fimlora_contract.jobs import Job

NONE = "\N{EN DASH}"
DATA, PICTURE = "compare.json", "compare.svg"


def compare(
    ctx: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|JOB",
            help="A model, by name; or the id of a job that has measured, job_...",
            show_default=False,
        ),
    ],
    dataset: Annotated[
        str | None,
        typer.Argument(
            metavar="DATASET",
            help="A file here, an uploaded id, a registered name, or one on the hub; none for a job.",
            show_default=False,
        ),
    ] = None,
    budget: options.Budget = None,
    budget_parameters: options.BudgetParameters = None,
    budget_fraction: options.BudgetFraction = None,
    budget_bytes: options.BudgetBytes = None,
    methods: options.Methods = None,
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
    batch_size: options.BatchSize = None,
    max_length: options.MaxLength = None,
    estimator: options.Estimator = None,
    signal: options.Signal = None,
    head: options.Head = None,
    head_rows: options.HeadRows = None,
    chat_labels: options.ChatLabels = None,
    dtype: options.Dtype = None,
    executor: options.Executor = None,
    shards: options.Shards = None,
    task: options.Task = None,
    column: options.Column = None,
    split: options.Split = None,
    retain: options.Retain = None,
    output: options.Output = None,
    timeout: options.Timeout = 3600,
    force: options.Force = False,
    as_json: options.AsJson = False,
) -> None:
    """Show how alike the plans of several methods are; nothing is trained.

    A model is measured once for all of them. A job that has measured is asked at once. Whether a
    plan helps is another question. Beside selected experts of a mixture, as many random ones are
    shown.

    [bold]Examples[/bold]

      fimlora compare minilm reviews.jsonl --budget 8 --output compared
      fimlora compare minilm my-rows --budget 8 --methods fim,coherent,uniform
      fimlora compare job_... --budget 2M
      fimlora compare job_... --budget 2M --experts routed:0.25
    """
    planned: dict[str, Any] = {
        "budget": request_fields.budget_of(budget, budget_parameters, budget_fraction, budget_bytes),
        "methods": split_names(methods),
        "allocation": request_fields.given(
            r_min=r_min, r_max=r_max, multiple_of=multiple_of, n_layers=layers,
            aggregation=aggregation, seed=seed,
            **constraints_of(group, rank_menu, per_type, max_lora_rank), **experts_of(experts),
        ),
    }  # fmt: skip
    measured: dict[str, Any] = {
        "target_modules": split_names(target_modules),
        **request_fields.given(
            exclude_modules=split_names(exclude_modules),
            target_parameters=parameters_asked(target_parameters),
            modules_to_save=names_of(modules_to_save),
        ),
        "calibration": request_fields.given(
            n_batches=request_fields.batches_of(batches), batch_size=batch_size, max_length=max_length,
            estimator=estimator, signal=signal, head=head, head_rows=head_rows,
            chat_labels=chat_labels, dtype=dtype, executor=executor,
            shards=request_fields.shards_of(shards), task=task, seed=seed,
        ),
        "force": force,
    }  # fmt: skip
    if output:
        check_writable(output)  # not only when everything has been measured
    client = client_of(ctx)
    if dataset is None:
        _check_job(model)
        found = client.jobs.compare(model, **planned, picture=output is not None)
        _show(found, found.model_dump(mode="json", exclude={"picture"}), as_json=as_json)
        _write(found, output)
        return
    more = request_fields.given(columns=columns_of(column), split=split)
    fields = {"base_model": checked_model(model), **planned, **measured}
    named = {"dataset": dataset, "retain": retain}
    request = with_datasets(client, build_comparison, fields, named, more)
    job = _wait(client, client.compare(request), timeout)
    assert isinstance(job.result, ComparisonResult)
    _show(job.result.comparison, job.model_dump(mode="json"), as_json=as_json)
    if output:
        files = client.jobs.download(job.id, output)
        say(("✓ ", "green"), f"{', '.join(sorted(files))} in {output}")


def methods_table(comparison: Comparison) -> Table:
    """A line per method: what its plan spends, and its signal."""
    table = make_table("method", "ranks", "parameters", "each", "signal", right=("ranks", "parameters"))  # fmt: skip
    for row in comparison.methods:
        ranks = [module.ranks[row.method] for module in comparison.modules]
        each = f"{min(ranks)} to {max(ranks)}"
        signal = row.signal.sentence if row.signal else NONE
        table.add_row(row.method, f"{row.ranks:,}", f"{row.parameters:,}", each, signal)
    return table


def pairs_table(comparison: Comparison) -> Table:
    """A line per pair: the share in the same place, and whether the order is one."""
    names = ("overlap", "rank order", "score order")
    table = make_table("method", "other method", *names, right=names)
    for pair in comparison.pairs:
        correlations = (pair.rank_correlation, pair.score_correlation)
        table.add_row(pair.a, pair.b, f"{pair.overlap:.1%}", *map(_correlation, correlations))
    return table


def experts_table(comparison: Comparison) -> Table:
    """A line per selection of experts: that which was asked for, then as many random ones."""
    names = ("experts", "of tokens", "of Fisher", "same experts", "parameters")
    table = make_table("select", *names, right=names)
    for row in comparison.experts or ():
        shares = (NONE if s is None else f"{s:.1%}" for s in (row.tokens, row.fisher))
        spent = sorted({method.parameters for method in row.methods})
        table.add_row(
            row.select, f"{row.selected:,} of {row.experts:,}", *shares, f"{row.shared:,}",
            " to ".join(f"{n:,}" for n in dict.fromkeys((spent[0], spent[-1]))),
        )  # fmt: skip
    return table


def left_out_lines(comparison: Comparison) -> list[str]:
    """A line per reason: which methods it leaves out, and how many where they are several."""
    reasons: dict[str, list[str]] = {}
    for method, reason in comparison.left_out.items():
        reasons.setdefault(reason.removeprefix(f"method {method!r} "), []).append(method)
    return [
        comparison.left_out[methods[0]]
        if len(methods) == 1
        else f"{', '.join(methods)} ({len(methods)} methods): each {reason}"
        for reason, methods in reasons.items()
    ]


def _correlation(value: float | None) -> str:
    return NONE if value is None else f"{value:+.2f}"


def _show(comparison: Comparison, data: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        show_json(data)
        return
    console = out()
    console.print(methods_table(comparison))
    console.print()
    console.print(pairs_table(comparison))
    if comparison.experts:
        console.print()
        console.print(experts_table(comparison))
    for line in left_out_lines(comparison):
        say((f"  left out: {line}", "dim"))


def _write(found: JobComparison, folder: Path | None) -> None:
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        fields = set(Comparison.model_fields)
        (folder / DATA).write_text(found.model_dump_json(include=fields, indent=2) + "\n")
        (folder / PICTURE).write_text(found.picture or "")
        say(("✓ ", "green"), f"{DATA}, {PICTURE} in {folder}")


def _check_job(job_id: str) -> None:
    if not job_id.startswith("job_"):
        raise typer.BadParameter(
            f"{job_id} is no id of a job: give a model and a dataset, or job_..."
        )


def _wait(client: Client, job: Job, timeout: float) -> Job:
    if job.cached:
        say(("✓ ", "green"), f"answered from the cache by {job.id}")
        return job
    with left_running(job.id), JobProgress(err()) as progress:
        done = client.jobs.wait(job.id, timeout=timeout, poll_every=0.25, on_progress=progress)
    say(("✓ ", "green"), f"{done.id} succeeded")
    return done
