"""The MCP server: its tools, what it tells of them, and what they work on.

Speaks over standard input and output, as the one who started it: with the address and key of
that environment, and with files below one folder only.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mcp.server import MCPServer
from mcp_types import ToolAnnotations

from fimlora_client.agents.arguments import ToldServer
from fimlora_client.agents.files import WorkFolder
from fimlora_client.agents.tools import Tools
from fimlora_client.aio.client import AsyncClient
from fimlora_contract import __version__

INSTRUCTIONS = """
fimlora decides how much LoRA rank each weight matrix gets, before training starts, and checks
afterwards that it was trained so. From a dataset to a verified configuration: calibrate with
base_model, dataset, budget and folder (files of the adapter are written there), train with the
config in that folder, verify the trained folder against the job. estimate and look are optional;
what_if tries other budgets at once. Uniform ranks are a strong default: where `signal` says that
the plan does not follow from the task, say so and use method "uniform".
""".strip()
READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
WRITES = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=True)


def make_server(connect: Callable[[], AsyncClient], folder: Path) -> MCPServer[Any]:
    """The server with its tools; nothing is asked of the service before a tool is called.

    Args:
        connect: Opens a client of the service.
        folder: Where tools read and write files.
    """
    client = connect()

    @asynccontextmanager
    async def lifespan(_: MCPServer[Any]) -> AsyncIterator[None]:
        async with client:
            yield

    tools = Tools(client, WorkFolder(folder))
    server: MCPServer[Any] = ToldServer(
        "fimlora", version=__version__, instructions=INSTRUCTIONS, lifespan=lifespan,
        log_level="WARNING",
    )  # fmt: skip
    reading: list[Callable[..., Any]]
    reading = [tools.look, tools.estimate, tools.what_if, tools.verify]
    writing: list[Callable[..., Any]] = [
        tools.calibrate,
        tools.wait_for_job,
        tools.fetch_config,
    ]
    for tool in reading:
        server.add_tool(tool, annotations=READS)
    for tool in writing:
        server.add_tool(tool, annotations=WRITES)
    return server
