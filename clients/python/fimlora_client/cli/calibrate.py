"""``fimlora calibrate``: ask for a plan, watch it being made, look at it, keep it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fimlora_client.cli.console import (
    INTERRUPTED,
    err,
    out,
    say,
    show_json,
)
from fimlora_client.cli.context import client_of
from fimlora_client.cli.progress import JobProgress
from fimlora_client.client import Client, JobHandle
from fimlora_client.endpoints import UPLOADS, build_request
from fimlora_client.errors import InvalidFile
from fimlora_client.rank_map import rank_map_table
from fimlora_client.results import Result
from fimlora_contract.jobs import Job
from fimlora_contract.references import expand_dataset
from fimlora_contract.requests import CalibrationRequest

BUDGET, DATA, CALIBRATION, ALLOCATION, ADAPTER, RUN = (
    "Budget (exactly one)", "Dataset", "Calibration", "Allocation", "Adapter", "This command",
)  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Work")(calibrate)


def _option(*names: str, panel: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, help=help, show_default=False, **more)


def calibrate(
    ctx: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A registered name, or namespace/name\\[@revision] on the hub.",
        ),
    ],
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="DATASET",
            help="A .jsonl or .parquet file here, an uploaded id (ds_...), a registered name, "
            "or namespace/name\\[@revision] on the hub.",
        ),
    ],
    budget: Annotated[
        int | None, _option("--budget", "-b", panel=BUDGET, help="Mean rank, such as 8.")
    ] = None,
    budget_parameters: Annotated[
        int | None,
        _option("--budget-parameters", panel=BUDGET, help="Trainable parameters at most."),
    ] = None,
    budget_fraction: Annotated[
        float | None,
        _option("--budget-fraction", panel=BUDGET, help="Share of the base model, e.g. 0.01."),
    ] = None,
    budget_bytes: Annotated[
        int | None,
        _option("--budget-bytes", panel=BUDGET, help="Size of the saved adapter at most."),
    ] = None,
    target_modules: Annotated[
        str | None,
        _option(
            "--target-modules",
            "-t",
            panel=ALLOCATION,
            help="all-linear, or names with commas between; PEFT's choice if left out.",
        ),
    ] = None,
    rule: Annotated[
        str | None,
        _option(
            "--rule",
            panel=ALLOCATION,
            help="proportional (default), uniform, random, or spectral (experimental: not "
            "shown to beat uniform).",
        ),
    ] = None,
    r_min: Annotated[
        int | None,
        _option("--r-min", panel=ALLOCATION, help="Lowest rank; half the mean if left out."),
    ] = None,
    r_max: Annotated[
        int | None,
        _option("--r-max", panel=ALLOCATION, help="Highest rank; twice the mean if left out."),
    ] = None,
    multiple_of: Annotated[
        int | None, _option("--multiple-of", panel=ALLOCATION, help="Only such ranks.")
    ] = None,
    batches: Annotated[
        int | None, _option("--batches", panel=CALIBRATION, help="Batches to measure (8).")
    ] = None,
    batch_size: Annotated[
        int | None, _option("--batch-size", panel=CALIBRATION, help="Examples per batch (8).")
    ] = None,
    max_length: Annotated[
        int | None, _option("--max-length", panel=CALIBRATION, help="Tokens per example (512).")
    ] = None,
    estimator: Annotated[
        str | None,
        _option("--estimator", panel=CALIBRATION, help="exact (default) or sampled."),
    ] = None,
    dtype: Annotated[
        str | None,
        _option("--dtype", panel=CALIBRATION, help="auto, float32, bfloat16 or float16."),
    ] = None,
    task: Annotated[
        str | None,
        _option("--task", panel=DATA, help="auto, sequence_classification or causal_lm."),
    ] = None,
    column: Annotated[
        list[str] | None,
        _option(
            "--column",
            panel=DATA,
            help="ROLE=NAME, e.g. text=review; found by usual names if left out. Repeatable.",
        ),
    ] = None,
    split: Annotated[
        str | None, _option("--split", panel=DATA, help="Split of a hub dataset (train).")
    ] = None,
    layout: Annotated[
        str | None,
        _option(
            "--layout", panel=ADAPTER, help="B: unequal ranks (default); C: padded to one."
        ),
    ] = None,
    weights: Annotated[
        bool, _option("--weights", panel=ADAPTER, help="Write initial weights as well.")
    ] = False,
    output: Annotated[
        Path | None,
        _option("--output", "-o", panel=RUN, help="Write the adapter into this folder."),
    ] = None,
    wait: Annotated[
        bool,
        _option("--wait/--no-wait", panel=RUN, help="Wait for the result (default)."),
    ] = True,
    timeout: Annotated[
        float, _option("--timeout", panel=RUN, help="Seconds to wait at most (3600).")
    ] = 3600,
    force: Annotated[
        bool, _option("--force", panel=RUN, help="Measure again, even if it is known.")
    ] = False,
    as_json: Annotated[
        bool, _option("--json", panel=RUN, help="Print the job as JSON.")
    ] = False,
) -> None:
    """Measure a model on a dataset and share a rank budget over its modules.

    [bold]Examples[/bold]

      fimlora calibrate minilm reviews.jsonl --budget 8 --output adapter

      fimlora calibrate org/model org/dataset --budget-parameters 2000000

      fimlora calibrate minilm my-rows --budget 16 --r-max 64 -t query,value
    """
    client = client_of(ctx)
    amounts = {
        "rank": budget, "parameters": budget_parameters,
        "fraction": budget_fraction, "bytes": budget_bytes,
    }  # fmt: skip
    fields: dict[str, Any] = {
        "base_model": _checked_model(model),
        "budget": _given(amounts) or _no_budget(),
        "target_modules": _split_names(target_modules),
        "calibration": _given(
            {
                "n_batches": batches, "batch_size": batch_size, "max_length": max_length,
                "estimator": estimator, "dtype": dtype, "task": task,
            }
        ),
        "allocation": _given(
            {"rule": rule, "r_min": r_min, "r_max": r_max, "multiple_of": multiple_of}
        ),
        "adapter": _given({"layout": layout, "weights": weights or None}),
        "force": force,
    }  # fmt: skip
    more = _given({"columns": _columns(column), "split": split})
    # Checked before the upload: a typo must not cost one.
    build_request(None, **fields, dataset="local:unchecked")
    request = build_request(None, **fields, dataset=_find_dataset(client, dataset) | more)
    _run(client, request, output=output, wait=wait, timeout=timeout, as_json=as_json)


def _run(
    client: Client,
    request: CalibrationRequest,
    *,
    output: Path | None,
    wait: bool,
    timeout: float,
    as_json: bool,
) -> None:
    handle = client.calibrate(request)
    if not wait:
        _leave(handle, as_json=as_json)
        return
    result = _wait(handle, timeout=timeout)
    if as_json:
        show_json(result.job.model_dump(mode="json"))
    else:
        out().print(rank_map_table(result.rank_map))
    if output:
        files = handle.download(output)
        say(("✓ ", "green"), f"{', '.join(sorted(files))} in {output}")
    else:
        say(("  keep it with  ", "dim"), f"fimlora fetch {handle.id} --output DIR")


def _wait(handle: JobHandle, *, timeout: float) -> Result:
    if handle.cached:
        say(("✓ ", "green"), f"answered from the cache by {handle.id}")
    try:
        with JobProgress(err()) as progress:
            result = handle.wait(timeout=timeout, poll_every=0.25, on_progress=progress)
    except KeyboardInterrupt:
        say(("  the job goes on  ", "dim"), f"fimlora show {handle.id}")
        say(("  or stop it with  ", "dim"), f"fimlora cancel {handle.id}")
        raise typer.Exit(INTERRUPTED) from None
    if not handle.cached:
        say(("✓ ", "green"), f"{handle.id} succeeded{_took(result.job)}")
    return result


def _leave(handle: JobHandle, *, as_json: bool) -> None:
    if as_json:
        show_json(handle.job.model_dump(mode="json"))
        return
    out().print(handle.id)
    say(("  look at it with  ", "dim"), f"fimlora show {handle.id}")


def _took(job: Job) -> str:
    if not (job.started_at and job.finished_at):
        return ""
    return f" in {(job.finished_at - job.started_at).total_seconds():.1f} s"


def _checked_model(model: str) -> str:
    """Refuse a path early: the service only knows names."""
    if model.startswith((".", "/", "~")) or (model.endswith("/") and Path(model).is_dir()):
        error = InvalidFile(f"{model} is a path; base models are given by name")
        error.next_step = f"Register it: fimlora models add NAME {model}"
        raise error
    return model


def _find_dataset(client: Client, dataset: str) -> dict[str, Any]:
    """The reference for a dataset; a file here is uploaded first."""
    path = Path(dataset).expanduser()
    if path.suffix in UPLOADS or dataset.startswith((".", "/", "~")):
        uploaded = client.datasets.upload(path)
        rows = f", {uploaded.rows:,} rows" if uploaded.rows is not None else ""
        say(("✓ ", "green"), f"uploaded {path.name} as {uploaded.id}{rows}")
        return {"source": "upload", "id": uploaded.id}
    found: dict[str, Any] = expand_dataset(dataset)
    return found


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Options that were given; the contract has the defaults of all others."""
    return {name: value for name, value in options.items() if value is not None}


def _no_budget() -> dict[str, Any]:
    raise typer.BadParameter("how much may it spend? For example --budget 8, the mean rank.")


def _split_names(names: str | None) -> str | list[str] | None:
    if names is None or names == "all-linear":
        return names
    return [name.strip() for name in names.split(",")]


def _columns(pairs: list[str] | None) -> dict[str, str] | None:
    if not pairs:
        return None
    split = [pair.partition("=") for pair in pairs]
    for role, _, name in split:
        if not (role and name):
            raise typer.BadParameter(f"--column {role!r} is not of the form ROLE=NAME")
    return {role: name for role, _, name in split}
