"""``fimlora sweep``: what aggregation, number of batches and floor change, from one measurement."""

import csv
import io
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from fimlora_client.blocking.client import Client
from fimlora_client.bodies import build_request, checked
from fimlora_client.cli.common import options, request_fields
from fimlora_client.cli.common.console import make_table, out, say, show_json
from fimlora_client.cli.common.constraints import constraints_of
from fimlora_client.cli.common.context import client_of
from fimlora_client.cli.common.inputs import (
    checked_model,
    columns_of,
    names_of,
    parameters_asked,
    split_names,
    with_datasets,
)
from fimlora_client.cli.work.calibrate import wait_for
from fimlora_client.files import write_text
from fimlora_contract.sweeps import Sweep, SweepRequest

NONE = "\N{EN DASH}"
SWEEP = "Sweep (commas between)"


def _over(name: str, help: str) -> Any:
    return typer.Option(name, rich_help_panel=SWEEP, help=help, show_default=False)


def sweep(
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
    aggregations: Annotated[
        str | None, _over("--aggregations", "Of mean, max and l2 (all of them).")
    ] = None,
    first_batches: Annotated[
        str | None,
        _over("--first-batches", "Plan from so many of the batches (1,2,4 ... and all)."),
    ] = None,
    floors: Annotated[
        str | None, _over("--floors", "Lowest ranks (1, half of the default, and that).")
    ] = None,
    r_max: options.RMax = None,
    multiple_of: options.MultipleOf = None,
    group: options.Group = None,
    rank_menu: options.RankMenu = None,
    per_type: options.PerType = None,
    max_lora_rank: options.MaxLoraRank = None,
    target_modules: options.TargetModules = None,
    exclude_modules: options.ExcludeModules = None,
    target_parameters: options.TargetParameters = None,
    modules_to_save: options.ModulesToSave = None,
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
    task: options.Task = None,
    column: options.Column = None,
    split: options.Split = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            rich_help_panel=options.RUN,
            help="Write it into this file, .json or .csv.",
            show_default=False,
        ),
    ] = None,
    timeout: options.Timeout = 3600,
    force: options.Force = False,
    as_json: options.AsJson = False,
) -> None:
    """Show what the aggregation, fewer batches and the floor would change; measured once.

    All plans have one budget and go by the Fisher information. A job that has measured is
    asked at once; a model is calibrated first. No line says that a plan trains better.

    [bold]Examples[/bold]

      fimlora sweep job_... --budget 8
      fimlora sweep minilm my-rows --budget 16 --batches 16 --output sweep.csv
      fimlora sweep job_... --budget 8 --aggregations mean --first-batches 1,8 --floors 1,4
    """
    shared = request_fields.given(r_max=r_max, multiple_of=multiple_of) | constraints_of(
        group, rank_menu, per_type, max_lora_rank
    )
    wanted: dict[str, Any] = {
        "budget": request_fields.budget_of(
            budget, budget_parameters, budget_fraction, budget_bytes
        ),
        "allocation": shared,
        **request_fields.given(
            aggregations=split_names(aggregations),
            n_batches=_numbers("--first-batches", first_batches),
            r_min=_numbers("--floors", floors),
            signal=signal,
        ),
    }
    checked(SweepRequest, wanted)  # before anything is uploaded or measured
    if output and output.suffix not in {".json", ".csv"}:
        raise typer.BadParameter(f"--output {output}: name a .json or a .csv file")
    client = client_of(ctx)
    if dataset is None:
        _check_job(model)
        _show(client.jobs.sweep(model, **wanted), output, as_json=as_json)
        return
    measured: dict[str, Any] = {
        "base_model": checked_model(model),
        "budget": wanted["budget"],
        "target_modules": split_names(target_modules),
        **request_fields.given(
            exclude_modules=split_names(exclude_modules),
            target_parameters=parameters_asked(target_parameters),
            modules_to_save=names_of(modules_to_save),
        ),
        "calibration": request_fields.given(
            n_batches=request_fields.batches_of(batches), batch_size=batch_size, max_length=max_length,
            estimator=estimator, signal=signal, head=head, head_rows=head_rows,
            chat_labels=chat_labels, dtype=dtype, executor=executor, task=task, seed=seed,
        ),
        "allocation": shared,
        "force": force,
    }  # fmt: skip
    more = request_fields.given(columns=columns_of(column), split=split)
    job_id = _calibrated(client, dataset, measured, more, timeout)
    _show(client.jobs.sweep(job_id, **wanted), output, as_json=as_json)


def sweep_table(found: Sweep) -> Table:
    """A line per plan: what it moves, where its modules stand, and its signal."""
    right = (
        "batches",
        "floor",
        "ranks moved",
        "overlap",
        "with default",
        "at floor",
        "at ceiling",
    )
    table = make_table("aggregation", *right, "signal", right=right)
    for row in found.rows:
        start = (row.aggregation, str(row.n_batches), str(row.r_min))
        if row.unknown is not None:
            table.add_row(*start, *(NONE,) * 6)  # why, stands below
            continue
        shares = (row.overlap, row.overlap_with_default, row.at_floor, row.at_ceiling)
        labels = (
            "" if row.moved_by_labels is None else f" ({row.moved_by_labels:.1%} by labels)"
        )
        signal = f"{row.signal}{labels}" if row.signal else NONE
        table.add_row(*start, f"{row.moved:,}", *(f"{share:.1%}" for share in shares), signal)
    return table


def csv_of(found: Sweep) -> str:
    """A row per plan, with a column for each of its fields."""
    text = io.StringIO()
    rows = [row.model_dump(mode="json") for row in found.rows]
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _show(found: Sweep, output: Path | None, *, as_json: bool) -> None:
    if as_json:
        show_json(found.model_dump(mode="json"))
    else:
        out().print(sweep_table(found))
        all_of = f"{found.n_batches} batches, {found.n_examples:,} examples"
        say((f"  moved and overlap: against the plan of all {all_of}", "dim"))
        say((f"  with default: against its mean with floor {found.default_r_min}", "dim"))
        for reason in dict.fromkeys(row.unknown for row in found.rows if row.unknown):
            say((f"  {NONE}: {reason}", "dim"))
    if output:
        is_csv = output.suffix == ".csv"
        write_text(output, csv_of(found) if is_csv else found.model_dump_json(indent=2) + "\n")
        say(("✓ ", "green"), f"{output}")


def _calibrated(
    client: Client, dataset: str, fields: dict[str, Any], more: dict[str, Any], timeout: float
) -> str:
    """The id of a job that has measured what is asked for."""
    request = with_datasets(client, build_request, fields, {"dataset": dataset}, more)
    handle = client.calibrate(request)
    wait_for(handle, timeout=timeout)
    return handle.id


def _numbers(option: str, text: str | None) -> list[int] | None:
    """Whole numbers with commas between."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise typer.BadParameter(f"{option} {text}: give whole numbers with commas between")
    return [int(part) for part in parts]


def _check_job(job_id: str) -> None:
    if not job_id.startswith("job_"):
        raise typer.BadParameter(
            f"{job_id} is no id of a job: give a model and a dataset, or job_..."
        )
