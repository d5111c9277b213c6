"""Where commands write: results to standard output, all that is said about them to error.

So the output of every command can be piped, also while progress is shown.
"""

import json
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fimlora_client.cli.common.next_steps import next_step_of
from fimlora_client.cli.common.option_names import in_options
from fimlora_client.errors import (
    AdapterNotFound,
    ArtifactNotFound,
    ClientError,
    DatasetNotFound,
    InvalidSettings,
    JobCanceled,
    JobFailed,
    JobGone,
    JobNotFinished,
    JobNotFound,
    KeyNotFound,
    ModelNotFound,
    NoPattern,
    ResultExpired,
    ValidationFailed,
    WaitTimeout,
)
from fimlora_client.settings import wants_plain_output

IDS = frozenset(
    {
        "job",
        "kind",
        "dataset",
        "adapter",
        "model",
        "digest",
        "worker",
        "busy with",
        "method",
        "other method",
    }
)
# Words that are as short as they can be; sentences and sizes give way to them.
WHOLE = IDS | {"status", "budget", "age", "took"}
OK, ERROR, USAGE, NOT_FOUND, FAILED, NOT_FINISHED, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130
DIFFERS = 6  # a check that was asked for says no: drift above a limit, not as planned
SETTINGS = 78  # EX_CONFIG of sysexits.h, as service and worker answer
EXIT_CODES: dict[type[ClientError], int] = {
    ValidationFailed: USAGE,  # as for what typer refuses by itself
    JobNotFound: NOT_FOUND,
    JobGone: NOT_FOUND,
    DatasetNotFound: NOT_FOUND,
    AdapterNotFound: NOT_FOUND,
    KeyNotFound: NOT_FOUND,
    ModelNotFound: NOT_FOUND,
    ArtifactNotFound: NOT_FOUND,
    NoPattern: NOT_FOUND,
    ResultExpired: NOT_FOUND,
    JobFailed: FAILED,
    JobCanceled: FAILED,
    JobNotFinished: NOT_FINISHED,
    WaitTimeout: NOT_FINISHED,
    InvalidSettings: SETTINGS,
}
STATUS_STYLES = {
    "queued": "dim",
    "running": "cyan",
    "canceling": "yellow",
    "succeeded": "green",
    "failed": "red",
    "canceled": "yellow",
}


def out() -> Console:
    """Standard output; made anew each time, because tests and pipes change it."""
    return Console(highlight=False, force_terminal=_forced())


def err() -> Console:
    """Standard error."""
    return Console(stderr=True, highlight=False, force_terminal=_forced())


def _forced() -> bool | None:
    """What a console is to take its file for; by itself it looks."""
    return False if wants_plain_output() else None


def exit_code(error: ClientError) -> int:
    """What a script is told about an error."""
    found = (code for kind, code in EXIT_CODES.items() if isinstance(error, kind))
    return next(found, ERROR)


def show_error(error: ClientError, options: Collection[str] = ()) -> None:
    """One red line, and what to do next.

    Args:
        error: What went wrong.
        options: Those of the command, for what is wrong with them.
    """
    console = err()
    wrong = in_options(error, options) if isinstance(error, ValidationFailed) else str(error)
    console.print(Text.assemble(("error ", "bold red"), (wrong, "red")), soft_wrap=True)
    console.print(Text(f"      {next_step_of(error)}"), soft_wrap=True)
    if error.request_id and (error.status or 0) >= 500:
        console.print(Text(f"      request {error.request_id}", "dim"), soft_wrap=True)


def say(*parts: str | tuple[str, str]) -> None:
    """Tell the user something that is not the result; parts may carry a style."""
    err().print(Text.assemble(*parts), soft_wrap=True)


def show_json(value: Any) -> None:
    """Print a value as JSON, for programs to read."""
    print_plain(json.dumps(value, indent=2, ensure_ascii=False))


def print_plain(text: str) -> None:
    """Print text as it is: no wrapping, no colour."""
    out().print(text, markup=False, soft_wrap=True)


def make_table(
    *columns: str, right: tuple[str, ...] = (), folds: tuple[str, ...] = (), gap: int = 2
) -> Table:
    """A calm table: no frame, dim headings.

    Args:
        columns: Their headings, which say what may not be cut.
        right: Columns of numbers.
        folds: Columns that give way first, whatever their heading.
        gap: Blanks between two columns.
    """
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, gap, 0, 0))
    for column in columns:
        justify: Literal["left", "right"] = "right" if column in right else "left"
        # An id that is cut cannot be copied; other columns give way first.
        table.add_column(
            column, justify=justify, no_wrap=column in WHOLE and column not in folds
        )
    return table


def status_text(status: str) -> Text:
    """A status in its colour."""
    return Text(status, STATUS_STYLES.get(status, ""))


def ago(time: datetime | None) -> str:
    """How long ago something was, roughly."""
    if time is None:
        return ""
    return f"{duration(max((datetime.now(UTC) - time).total_seconds(), 0))} ago"


def duration(seconds: float) -> str:
    """A length of time in one unit, or two where it matters."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 10 * 3600:
        hours, minutes = divmod(round(seconds / 60), 60)
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    if seconds < 36 * 3600:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 86400:.0f} days"


def size(n_bytes: float) -> str:
    """A number of bytes in a unit that fits."""
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"
