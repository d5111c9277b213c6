"""Options that several commands take, by what they are about."""

from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from fimlora_client.cli.common import completion
from fimlora_contract.budgets import SPELLINGS
from fimlora_contract.methods import MethodName

BUDGET, DATA, CALIBRATION, ALLOCATION, ADAPTER, RUN = (
    "Budget", "Dataset", "Calibration", "Allocation", "Adapter", "This command",
)  # fmt: skip


Tenant = Annotated[
    str | None,
    typer.Option(
        "--tenant", help="Of this tenant only; needs an admin key.", show_default=False
    ),
]
JobId = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        help="Id of the job, job_...",
        show_default=False,
        autocompletion=completion.job_ids,
    ),
]


def _option(*names: str, panel: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, help=help, show_default=False, **more)


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        autocompletion=completion.models,
        help="A registered name, or namespace/name\\[@revision] on the hub.",
    ),
]
Dataset = Annotated[
    str,
    typer.Argument(
        metavar="DATASET",
        autocompletion=completion.datasets,
        help="A .jsonl, .json, .csv or .parquet file here, an uploaded id (ds_...), a registered name, "
        "or namespace/name\\[@revision] on the hub.",
    ),
]
Budget = Annotated[
    str | None,
    _option("--budget", "-b", panel=BUDGET, help=f"One of: {SPELLINGS}."),
]
# One option says it all; these stay for scripts that have them.
BudgetParameters = Annotated[
    str | None,
    _option("--budget-parameters", panel=BUDGET, help="Trainable parameters.", hidden=True),
]
BudgetFraction = Annotated[
    str | None,
    _option("--budget-fraction", panel=BUDGET, help="Share of the base model.", hidden=True),
]
BudgetBytes = Annotated[
    str | None,
    _option("--budget-bytes", panel=BUDGET, help="Bytes of A and B.", hidden=True),
]
TargetModules = Annotated[
    str | None,
    _option(
        "--target-modules",
        "-t",
        panel=ALLOCATION,
        help="all-linear, names with commas between, or a regular expression over full names; "
        "the architecture's convention if left out.",
    ),
]
ExcludeModules = Annotated[
    str | None,
    _option(
        "--exclude-modules",
        panel=ALLOCATION,
        help="Targets to leave out: names with commas between, or a regular expression.",
    ),
]
TargetParameters = Annotated[
    str | None,
    _option(
        "--target-parameters",
        panel=ALLOCATION,
        help="Fused experts that are targets besides: all, or names with commas between.",
    ),
]
ModulesToSave = Annotated[
    str | None,
    _option(
        "--modules-to-save",
        panel=ALLOCATION,
        help="Modules that train whole beside LoRA, as in PEFT, such as lm_head: names with commas "
        "between. The budget does not count them.",
    ),
]
Method = Annotated[
    str | None,
    _option(
        "--method",
        panel=ALLOCATION,
        autocompletion=completion.methods,
        help=f"One of {', '.join(get_args(MethodName))}; fim by default. All but fim, uniform and "
        "random are experimental: not shown to beat uniform.",
    ),
]
Methods = Annotated[
    str | None,
    _option(
        "--methods",
        panel=ALLOCATION,
        autocompletion=completion.methods,
        help="Two or more, with commas between; all that one set of passes gives, but gora and "
        "kappa, if left out.",
    ),
]
RMin = Annotated[
    int | None,
    _option("--r-min", panel=ALLOCATION, help="Lowest rank; half the mean if left out."),
]
RMax = Annotated[
    int | None,
    _option("--r-max", panel=ALLOCATION, help="Highest rank; twice the mean if left out."),
]
MultipleOf = Annotated[
    int | None, _option("--multiple-of", panel=ALLOCATION, help="Only such ranks.")
]
Layers = Annotated[
    int | None,
    _option(
        "--layers",
        panel=ALLOCATION,
        help="How many layers fisher-layers or cka-layers choose; half if left out.",
    ),
]
Group = Annotated[
    list[str] | None,
    _option(
        "--group",
        panel=ALLOCATION,
        help="One rank for all of these: names, endings, patterns or families such as "
        "family:vision with commas between (repeatable); or type, fused (what servers pack) or "
        "layer.",
    ),
]
RankMenu = Annotated[
    str | None,
    _option(
        "--rank-menu",
        panel=ALLOCATION,
        help="Only these ranks, with commas between; or powers-of-two, or vllm.",
    ),
]
PerType = Annotated[
    list[str] | None,
    _option(
        "--per-type",
        panel=ALLOCATION,
        help="NAME:KEY=VALUE,... with r_min, r_max or share of the budget, e.g. "
        "v_proj:r_min=8,share=0.2 or family:vision:share=0.1. Repeatable.",
    ),
]
MaxLoraRank = Annotated[
    int | None,
    _option("--max-lora-rank", panel=ALLOCATION, help="The highest rank your server allows."),
]
Experts = Annotated[
    str | None,
    _option(
        "--experts",
        metavar="SELECT:SHARE",
        panel=ALLOCATION,
        help="Of a mixture, train this share of the experts of each layer: routed:0.25, "
        "fisher:0.25, or random:0.25 as the control; or as few as cover a share of the tokens: "
        "routed:coverage=0.8. Of fused experts, initial weights are written.",
    ),
]
SelectedExperts = Annotated[
    str | None,
    _option(
        "--experts",
        metavar="SELECT:SHARE",
        panel=ALLOCATION,
        help="Of a mixture, plans train this share of the experts of each layer, routed:0.25 or "
        "fisher:0.25, or as few as cover a share of the tokens, routed:coverage=0.8; beside as many "
        "random ones.",
    ),
]
Aggregation = Annotated[
    str | None,
    _option("--aggregation", panel=ALLOCATION, help="mean (default), max or l2."),
]
Seed = Annotated[
    int | None,
    _option("--seed", panel=CALIBRATION, help="Of all that is drawn at random (0)."),
]
Batches = Annotated[
    str | None,
    _option(
        "--batches",
        panel=CALIBRATION,
        help="Batches to measure (8), or auto: until the plan is stable.",
    ),
]
Tolerance = Annotated[
    float | None,
    _option(
        "--tolerance",
        panel=CALIBRATION,
        help="With --batches auto: share of a stable plan that other rows may move (0.05).",
    ),
]
MaxBatches = Annotated[
    int | None,
    _option("--max-batches", panel=CALIBRATION, help="With --batches auto: at most (64)."),
]
BatchSize = Annotated[
    int | None, _option("--batch-size", panel=CALIBRATION, help="Examples per batch (8).")
]
MaxLength = Annotated[
    int | None, _option("--max-length", panel=CALIBRATION, help="Tokens per example (512).")
]
Estimator = Annotated[
    str | None,
    _option(
        "--estimator",
        panel=CALIBRATION,
        help="auto (default: exact where it costs little, else sketched), exact, sketched "
        "or sampled.",
    ),
]
Signal = Annotated[
    bool | None,
    _option(
        "--signal/--no-signal",
        panel=CALIBRATION,
        help="Measure how much of the plan follows from the labels, which takes up to half as "
        "long again (default).",
    ),
]
ChatLabels = Annotated[
    str | None,
    _option(
        "--chat-labels",
        panel=CALIBRATION,
        help="What is predicted of chat rows: assistant (default), last turn of it, or all.",
    ),
]
Head = Annotated[
    str | None,
    _option(
        "--head",
        panel=CALIBRATION,
        help="A new task head: fitted before measuring (default), or fresh, as drawn.",
    ),
]
HeadRows = Annotated[
    int | None,
    _option("--head-rows", panel=CALIBRATION, help="Rows to fit it on at most (1024)."),
]
Dtype = Annotated[
    str | None,
    _option("--dtype", panel=CALIBRATION, help="auto, float32, bfloat16 or float16."),
]
Executor = Annotated[
    str | None,
    _option(
        "--executor",
        panel=CALIBRATION,
        help="resident, streamed from disk, or auto by the memory there is (default).",
    ),
]
Shards = Annotated[
    str | None,
    _option(
        "--shards",
        panel=CALIBRATION,
        help="In how many parts workers share the batches (1), or auto: one per worker.",
    ),
]
TrainedAdapter = Annotated[
    str | None,
    _option(
        "--adapter",
        panel=CALIBRATION,
        help="Measure at a trained adapter, an id (ad_...) or a name: its modules are the targets.",
    ),
]
Task = Annotated[
    str | None,
    _option(
        "--task", panel=DATA, help="auto, sequence_classification, regression or causal_lm."
    ),
]
Column = Annotated[
    list[str] | None,
    _option(
        "--column",
        panel=DATA,
        help="ROLE=NAME, e.g. text=review; found by usual names if left out. tools=, system= "
        "and input= leave such a column alone. Repeatable.",
    ),
]
Retain = Annotated[
    str | None,
    _option(
        "--retain",
        metavar="DATASET",
        panel=DATA,
        help="With method vila: rows whose function is to be kept, named as the dataset is.",
    ),
]
Split = Annotated[
    str | None, _option("--split", panel=DATA, help="Split of a hub dataset (train).")
]
Layout = Annotated[
    str | None,
    _option("--layout", panel=ADAPTER, help="B: unequal ranks (default); C: padded to one."),
]
Scale = Annotated[
    float | None,
    _option("--scale", panel=ADAPTER, help="Alpha over rank, the same for all modules (2)."),
]
Alpha = Annotated[
    float | None,
    _option(
        "--alpha",
        panel=ADAPTER,
        help="One alpha for all modules in place of one scale, so that scales differ by rank.",
    ),
]
RsLora = Annotated[
    bool,
    _option("--rslora", panel=ADAPTER, help="With --alpha: divided by the root of the rank."),
]
Weights = Annotated[
    bool, _option("--weights", panel=ADAPTER, help="Write initial weights as well.")
]
Init = Annotated[
    str | None,
    _option(
        "--init",
        panel=ADAPTER,
        help="Write these initial weights: kaiming, eva (directions of the inputs), "
        "lora-one, gora (steps down the gradient), "
        "lora-ga (changes the base model) or zeros.",
    ),
]
Output = Annotated[
    Path | None,
    _option("--output", "-o", panel=RUN, help="Write the adapter into this folder."),
]
Wait = Annotated[
    bool,
    _option("--wait/--no-wait", panel=RUN, help="Wait for the result (default)."),
]
Timeout = Annotated[
    float, _option("--timeout", panel=RUN, help="Seconds to wait at most (3600).")
]
Pin = Annotated[
    str | None,
    _option("--pin", metavar="NAME:TAG", panel=RUN, help="Let this name stand for the result."),
]
Estimate = Annotated[
    bool,
    _option("--estimate", panel=RUN, help="Say what it would need, and start nothing."),
]
Priority = Annotated[
    str | None,
    _option("--priority", panel=RUN, help="normal (default), or high: before all normal ones."),
]
Deadline = Annotated[
    float | None,
    _option("--deadline", panel=RUN, help="Seconds after which a job that goes on fails."),
]
Webhook = Annotated[
    str | None,
    _option("--webhook", panel=RUN, help="Address to be told of the job's end."),
]
Label = Annotated[
    list[str] | None,
    _option("--label", panel=RUN, help="KEY=VALUE to find the job by. Repeatable."),
]
Force = Annotated[
    bool, _option("--force", panel=RUN, help="Measure again, even if it is known.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]
