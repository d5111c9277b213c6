"""``fimlora mcp``: tools for agents, by the Model Context Protocol."""

from pathlib import Path
from typing import Annotated

import typer

from fimlora_client.cli.common.context import Connection
from fimlora_client.errors import InvalidFile, MissingExtra


def mcp(
    ctx: typer.Context,
    folder: Annotated[
        Path,
        typer.Option(
            "--folder",
            help="Tools read datasets and adapters and write files below this folder only.",
        ),
    ] = Path(),
) -> None:
    """Serve tools for agents on standard input and output (MCP).

    An agent's program starts it. Tools: look, estimate, calibrate,
    wait_for_job, what_if, fetch_config, verify. They ask the service at
    FIMLORA_URL with the key of this environment. Needs the extra mcp.

    [bold]Example[/bold], in an agent's configuration:

      {"command": "fimlora", "args": ["mcp", "--folder", "/work"]}
    """
    try:
        from fimlora_client.agents.server import make_server
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("fimlora"):
            raise
        failure = MissingExtra(f"fimlora mcp needs {error.name!r}, which is not installed")
        failure.next_step = "Install it: pip install 'fimlora[mcp]'"
        raise failure from error
    if not folder.expanduser().is_dir():
        raise InvalidFile(f"{folder} is no folder")
    connection: Connection = ctx.find_root().obj
    make_server(connection.open_async, folder).run("stdio")
