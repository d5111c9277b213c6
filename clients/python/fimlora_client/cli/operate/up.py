"""``fimlora up``: the whole service on one machine, in the foreground."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from fimlora_client.cli.common.console import err
from fimlora_client.cli.common.folders import DataDir, data_dir_of
from fimlora_client.settings import read_settings
from fimlora_contract import __version__

if TYPE_CHECKING:
    from fimlora_client.stack.up import Stack


def up(
    data_dir: DataDir = None,
    host: Annotated[str, typer.Option(help="Address the API listens on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the API; 0 finds a free one.")
    ] = 8000,
    workers: Annotated[
        str,
        typer.Option(
            metavar="N|auto",
            help="Workers (1 to 64), each with a GPU of its own or a share of the cores; auto: one "
            "on every GPU.",
        ),
    ] = "1",
) -> None:
    """Start Valkey, the API and a worker here; Ctrl-C stops them all.

    Nothing needs to be installed or configured. What dies is started again; jobs, uploads
    and results are kept in the data folder and are there again next time. With REDIS_URL
    set, that server is used and none is started.
    """
    # Not at the top: `up` needs POSIX, the other commands do not.
    from fimlora_client.stack import up as stack

    settings = read_settings()
    options = stack.Options(
        data_dir=data_dir_of(data_dir),
        host=host,
        port=port,
        workers=stack.read_workers(workers),
        redis_url=settings.redis_url,
        runtime_dir=settings.runtime_dir,
        log_format=settings.log_format,
    )
    screen = Screen(err())
    try:
        stack.run(options, say=screen.say, step=screen.step, on_ready=screen.ready)
    finally:
        screen.close()
    screen.say("stopped")


class Screen:
    """What the user sees: one moving line while starting, then where everything is."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: Status | None = None

    def step(self, what: str) -> None:
        """Say what is being waited for."""
        if not self._console.is_terminal:
            self.say(what)
        elif self._status:
            self._status.update(what)
        else:
            self._status = self._console.status(what)
            self._status.start()

    def say(self, what: str) -> None:
        """Say something once."""
        self._console.print(Text(what), soft_wrap=True)

    def ready(self, stack: "Stack") -> None:
        """Say where everything is."""
        self.close()
        rows = {
            "API": stack.url,
            "docs": f"{stack.url}/docs",
            "jobs": stack.store,
            "accepted jobs": stack.durability,
            "serves": stack.access,
            "workers": str(stack.workers),
            "data": _short(stack.data_dir),
            "logs": _short(stack.logs),
        }
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 2))
        for name, value in rows.items():
            table.add_row(Text(name, "dim"), Text(value))
        title = Text.assemble(
            (f"fimlora {__version__}", "bold"), f" is up after {stack.seconds:.1f} s"
        )
        self._console.print(title, "", table, "", sep="\n", soft_wrap=True)
        self._console.print(Text("Ctrl-C stops everything.", "dim"))

    def close(self) -> None:
        """End the moving line."""
        if self._status:
            self._status.stop()
            self._status = None


def _short(path: Path) -> str:
    try:
        return f"~/{path.relative_to(Path.home())}"
    except ValueError:
        return str(path)
