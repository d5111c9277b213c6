"""``fimlora truncate``, ``audit`` and ``convert``: trained adapters in folders, without a service.

Calls the part of the engine that is installed with the client, which needs NumPy and no torch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from fimlora_client.cli.common import options, request_fields
from fimlora_client.cli.common.console import err, make_table, out, say, show_json, size
from fimlora_client.cli.common.options import ADAPTER, AsJson
from fimlora_client.errors import InvalidFile
from fimlora_contract.budgets import SPELLINGS

if TYPE_CHECKING:
    from fimlora.adapter.audit import Audit

BUDGET, RUN = "Budget (exactly one)", "This command"


def _option(*names: str, panel: str, help: str) -> Any:
    return typer.Option(*names, rich_help_panel=panel, help=help, show_default=False)


Folder = Annotated[
    Path,
    typer.Argument(
        metavar="ADAPTER",
        help="Folder with adapter_config.json and adapter_model.safetensors.",
        show_default=False,
    ),
]
Output = Annotated[
    Path, _option("--output", "-o", panel=RUN, help="Write the new adapter into this folder.")
]
Overwrite = Annotated[
    bool, _option("--overwrite", panel=RUN, help="Replace an adapter that is there already.")
]
Layout = Annotated[
    str,
    _option("--layout", panel=ADAPTER, help="B: unequal ranks (default); C: padded to one."),
]


class UnusableAdapter(InvalidFile):
    """An adapter, or what was asked of it, cannot be."""

    code = "adapter_invalid"


def truncate(
    folder: Folder,
    output: Output,
    budget: Annotated[
        str | None,
        _option("--budget", "-b", panel=BUDGET, help=f"One of: {SPELLINGS}; no share."),
    ] = None,
    budget_parameters: options.BudgetParameters = None,
    budget_bytes: options.BudgetBytes = None,
    energy: Annotated[
        float | None,
        _option(
            "--energy",
            panel=BUDGET,
            help="Share of all squared singular values to keep at least, such as 0.95, as far as "
            "--r-max allows, which is then said.",
        ),
    ] = None,
    r_min: Annotated[
        int, _option("--r-min", panel=ADAPTER, help="Lowest rank (1); 0 lets modules go.")
    ] = 1,
    r_max: Annotated[
        int | None, _option("--r-max", panel=ADAPTER, help="Highest rank, as of a server.")
    ] = None,
    multiple_of: Annotated[
        int, _option("--multiple-of", panel=ADAPTER, help="Only such ranks.")
    ] = 1,
    layout: Layout = "B",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Cut a trained adapter to a budget, with the least change of its function.

    One threshold goes through the singular values of all updates (PARA). No
    data and no device: what the cut does to a task is not measured. Says how
    far the function changed, and how far it would with one rank for all.

    [bold]Examples[/bold]

      fimlora truncate trained --budget 8 --output smaller
      fimlora truncate trained --energy 0.95 --r-max 16 --output smaller
    """
    with engine_errors():
        from fimlora.adapter.truncate import truncate_adapter

        found = truncate_adapter(
            folder.expanduser(),
            output.expanduser(),
            budget=_budget(folder, budget, budget_parameters, budget_bytes),
            energy=energy,
            r_min=r_min,
            r_max=r_max,
            multiple_of=multiple_of,
            layout=layout,
            overwrite=overwrite,
        )
    if as_json:
        show_json(found.to_json())
        return
    table = make_table("module", "rank", "before", "change", right=("rank", "before", "change"))
    for module in found.modules:
        table.add_row(
            module.name, str(module.rank), str(module.rank_before), f"{module.error:.2%}"
        )
    out().print(table)
    out().print(Text(found.sentence), soft_wrap=True)
    _say_written(output, found.bytes_before, found.bytes_after)


def audit(
    folder: Folder,
    rank_map: Annotated[
        Path | None,
        typer.Option(
            "--rank-map",
            help="A rank_map.json, or the folder of one: what was planned.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a trained adapter uses of its ranks, module by module.

    With --rank-map also where it is not what was planned.

    [bold]Example[/bold]

      fimlora audit trained --rank-map planned
    """
    with engine_errors():
        from fimlora.adapter.audit import audit_adapter
        from fimlora.adapter.read import load_plan

        plan = load_plan(rank_map.expanduser()) if rank_map else None
        found = audit_adapter(folder.expanduser(), plan=plan)
    if as_json:
        show_json(found.to_json())
        return
    _show_audit(found, has_plan=plan is not None)


def convert(
    folder: Folder, output: Output, layout: Layout = "B", overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Write a trained adapter in another layout, with the same function.

    B has the rank of every module; C pads all to one rank, for servers and
    trainers that know no other. AdaLoRA becomes plain LoRA in either.

    [bold]Example[/bold]

      fimlora convert trained --layout C --output padded
    """
    with engine_errors():
        from fimlora.adapter.convert import convert_adapter

        found = convert_adapter(
            folder.expanduser(), output.expanduser(), layout=layout, overwrite=overwrite
        )
    if as_json:
        show_json(found.to_json())
        return
    out().print(Text(found.sentence), soft_wrap=True)
    _say_written(output, found.bytes_before, found.bytes_after)


@contextmanager
def engine_errors() -> Iterator[None]:
    """What the engine refuses, as an error of this command.

    Raises:
        UnusableAdapter: The adapter or an option cannot be.
    """
    try:
        from fimlora.errors import FimloraError

        with err().status("reading the adapter"):
            yield
    except FimloraError as error:
        failure = UnusableAdapter(str(error).replace("pass overwrite=True", "give --overwrite"))
        failure.next_step = "Nothing was written; --help of this command says which adapters and options it takes."
        raise failure from error


def _budget(
    folder: Path, budget: str | None, parameters: str | None, n_bytes: str | None
) -> Any:
    """The budget that was asked for, in whatever unit."""
    from fimlora.adapter.trained.read import stored_width
    from fimlora.plan import Budget

    if budget is None and parameters is None and n_bytes is None:
        return None
    [(unit, value)] = request_fields.budget_of(budget, parameters, None, n_bytes).items()
    if unit == "fraction":
        raise typer.BadParameter(
            f"--budget {budget} is a share of a base model, which is not at hand here: give a mean "
            "rank, parameters or bytes"
        )
    width = stored_width(folder.expanduser()) if unit == "bytes" else 4
    return Budget(unit, value, width)  # type: ignore[arg-type]


def _show_audit(found: "Audit", *, has_plan: bool) -> None:
    planned = ("planned",) if has_plan else ()
    figures = ("rank", *planned, "90 %", "95 %", "99 %", "effective", "norm")
    table = make_table("module", *figures, right=figures)
    for m in found.modules:
        plan = ("" if m.planned is None else str(m.planned),) if has_plan else ()
        table.add_row(
            m.name, str(m.rank), *plan, str(m.rank_90), str(m.rank_95), str(m.rank_99),
            f"{m.effective_rank:.1f}", f"{m.norm:.3g}",
        )  # fmt: skip
    out().print(table)
    for deviation in found.deviations:
        out().print(Text(deviation, "yellow"), soft_wrap=True)
    if has_plan and not found.deviations:
        say(("✓ ", "green"), "modules, ranks and scales are those of the plan")
    out().print(Text(found.sentence), soft_wrap=True)


def _say_written(output: Path, before: int, after: int) -> None:
    say(("✓ ", "green"), f"{output}: {size(after)}, before {size(before)}")
