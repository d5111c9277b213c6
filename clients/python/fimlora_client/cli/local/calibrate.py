"""``fimlora local``: calibrate on this machine, without service and store.

The worker does it, in a process of its own that is told what is asked for: nothing of it is
imported here.
"""

import importlib.util
import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from fimlora_client.bodies import build_request
from fimlora_client.cli.common import options, request_fields
from fimlora_client.cli.common.console import INTERRUPTED, err, out, say, show_json
from fimlora_client.cli.common.constraints import constraints_of, experts_of
from fimlora_client.cli.common.inputs import columns_of, names_of, parameters_asked, split_names
from fimlora_client.cli.common.option_names import options_of
from fimlora_client.cli.common.progress import JobProgress
from fimlora_client.errors import ClientError, InvalidFile, MissingExtra
from fimlora_client.files import check_writable
from fimlora_client.rank_map import rank_map_table
from fimlora_contract.jobs import Job, JobStatus
from fimlora_contract.rank_maps import RankMap
from fimlora_contract.references import HUB_ID

STEPS = {
    "--adapter": "fimlora calibrate MODEL ROWS --adapter NAME, once fimlora adapters add has it",
    "--split": "ROWS is a file or a folder, so give that of the split; of a dataset on the hub, "
    "fimlora calibrate takes one",
}
NEEDED = ("fimlora_worker", "torch", "datasets", "rq")
group = typer.Typer(
    help="Work on this machine, without a service.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


class CalibrationFailed(ClientError, RuntimeError):
    """A calibration on this machine failed."""

    code = "calibration_failed"


@group.callback()
def local() -> None:
    """Work on this machine, without a service; needs the extra [bold]worker[/bold]."""


class LocalCommand(TyperCommand):
    """Says of an option that only `fimlora calibrate` has what to do instead."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse such an option by its name."""
        own, elsewhere = options_of(self), options_of(ctx.find_root().command)
        for arg in args:
            name = arg.partition("=")[0]
            if name.startswith("--") and name in elsewhere - own:
                step = STEPS.get(
                    name, "leave it out, or ask a service with it: fimlora calibrate"
                )
                raise typer.BadParameter(
                    f"{name} is for jobs of a service, and this command does without one: {step}"
                )
        return super().parse_args(ctx, args)


@group.command("calibrate", cls=LocalCommand)
def calibrate(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL_DIR", help="Folder of the base model.")
    ],
    dataset: Annotated[
        Path,
        typer.Argument(metavar="ROWS", help="A .jsonl, .csv or .parquet file, or a folder."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Write the adapter into this folder.")
    ],
    budget: options.Budget = None,
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
    task: options.Task = None,
    column: options.Column = None,
    retain: Annotated[
        Path | None,
        typer.Option(
            metavar="ROWS",
            rich_help_panel=options.DATA,
            help="With method vila: rows whose function is to be kept, a file or a folder.",
            show_default=False,
        ),
    ] = None,
    layout: options.Layout = None,
    scale: options.Scale = None,
    alpha: options.Alpha = None,
    rslora: options.RsLora = False,
    weights: options.Weights = False,
    init: options.Init = None,
    as_json: options.AsJson = False,
) -> None:
    """Calibrate a model in a folder on rows in a file, and keep nothing but the adapter.

    Same code, same files as a job of the service, which also remembers what it measured: another
    budget measures again here. Needs the extra [bold]worker[/bold].

    [bold]Example[/bold]

      fimlora local calibrate ./all-MiniLM-L6-v2 train.jsonl --budget 8 --output adapter
    """
    fields: dict[str, Any] = {
        "budget": request_fields.budget_of(budget, None, None, None),
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
            executor=executor, task=task, seed=seed, head=head, head_rows=head_rows,
        ),
        "allocation": request_fields.given(
            method=method, r_min=r_min, r_max=r_max, multiple_of=multiple_of, n_layers=layers,
            aggregation=aggregation, seed=seed,
            **constraints_of(group, rank_menu, per_type, max_lora_rank), **experts_of(experts),
        ),
        "adapter": request_fields.given(
            layout=layout, **request_fields.scaling_of(scale, alpha, rslora),
            weights=weights or bool(experts and target_parameters) or None, init=init,
        ),
    }  # fmt: skip
    # As the service would refuse it; what the two are called is no matter here.
    roles = ("base_model", "dataset") if retain is None else ("base_model", "dataset", "retain")
    named: dict[str, Any] = dict.fromkeys(roles, "local:here")
    build_request(None, **fields, **named)
    check_writable(output)
    asked = {
        "model": str(_there(model)), "dataset": str(_there(dataset)),
        "retain": retain and str(_there(retain)),
        "output": str(output.expanduser().absolute()),
        "fields": fields, "columns": columns_of(column) or {},
    }  # fmt: skip
    found = _work(asked)
    if as_json:
        show_json(found)
    else:
        out().print(rank_map_table(RankMap.model_validate(found)))
    say(("✓ ", "green"), f"adapter in {output}")


def _there(given: Path) -> Path:
    path = given.expanduser().absolute()
    if path.exists():
        return path
    failure = InvalidFile(
        f"there is no {path}; this command reads files and folders of this machine"
    )
    failure.next_step = "A service knows names, uploads and the hub: `fimlora calibrate`."
    if re.match(HUB_ID, str(given)):
        failure.next_step = (
            f"What is on the hub can be brought here, `hf download {given} --local-dir DIR` (for a "
            "dataset with --repo-type dataset), or goes by its name with a service: `fimlora calibrate`."
        )
    raise failure


def _work(asked: dict[str, Any]) -> Any:
    """Have the worker's code do it; answers the rank map.

    Raises:
        MissingExtra: It is not installed here.
        CalibrationFailed: It failed.
        Exit: It was interrupted; nothing was written.
    """
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise MissingExtra(f"{missing[0]} is not installed here: pip install 'fimlora[worker]'")
    command = [sys.executable, "-m", "fimlora_worker.local"]
    with (
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process,
        JobProgress(err()) as progress,
    ):
        assert process.stdin
        assert process.stdout
        try:
            process.stdin.write(json.dumps(asked))
            process.stdin.close()
            last: dict[str, Any] = {}
            for line in process.stdout:
                last = json.loads(line)
                if "progress" in last:
                    progress(_as_job(last["progress"]))
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            say("  stopped; nothing was written")
            raise typer.Exit(INTERRUPTED) from None
    if "rank_map" in last:
        return last["rank_map"]
    error = last.get("error") or {"detail": f"it ended with status {process.returncode}"}
    raise CalibrationFailed(str(error["detail"]))


def _as_job(progress: dict[str, Any]) -> Job:
    """Progress in the shape that is shown of jobs."""
    return Job.model_validate(
        {
            "id": "local",
            "status": JobStatus.RUNNING,
            "attempt": 1,
            "created_at": datetime.now(UTC),
            "request": {},
            "resolved": {},
            "progress": progress,
        }
    )
