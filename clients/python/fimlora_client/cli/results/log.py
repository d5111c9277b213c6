"""``fimlora log``: tell an experiment tracker of a plan or an evaluation."""

from enum import StrEnum
from typing import Annotated

import typer

from fimlora_client.cli.common.console import out, say
from fimlora_client.cli.common.context import client_of
from fimlora_client.cli.common.options import JobId
from fimlora_client.errors import ClientError


class Tracker(StrEnum):
    """Who can be told."""

    WANDB = "wandb"
    MLFLOW = "mlflow"


class TrackerFailed(ClientError, RuntimeError):
    """A tracker did not take what it was told."""

    code = "tracker_failed"
    next_step = "Its own variables, as WANDB_MODE or MLFLOW_TRACKING_URI, say where it is."


def log(
    ctx: typer.Context,
    job_id: JobId,
    to: Annotated[
        Tracker,
        typer.Option("--to", help="Who is told: an extra of fimlora.", show_default=False),
    ],
    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            help="Id of a run that is there already; else one is made.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Log a plan or an evaluation to W&B or MLflow: figures, tables, rank map, files.

    Where the tracker is, and in which project or experiment a run is made, its own
    variables say: WANDB_PROJECT, WANDB_MODE, MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME.
    Prints the id of the run. In Python: fimlora_client.integrations.wandb.log_job, and .mlflow.

    [bold]Examples[/bold]

      fimlora log job_... --to wandb
      fimlora log job_... --to mlflow --run 0a1b...
    """  # fmt: skip
    client = client_of(ctx)
    try:
        if to is Tracker.MLFLOW:
            from fimlora_client.integrations.mlflow import log_job as log_to_mlflow

            run_id = log_to_mlflow(client, job_id, run_id=run)
        else:
            from fimlora_client.integrations.wandb import log_to_run

            run_id = log_to_run(client, job_id, run)
    except ClientError:
        raise
    except Exception as error:  # a tracker's faults have no class in common
        raise TrackerFailed(f"{to.value} did not take it: {error}") from error
    out().print(run_id)
    say(("✓ ", "green"), f"{to.value} was told of {job_id}")
