"""What is wrong with a tool's arguments, as its answer: which one, what was given, what is allowed."""

from collections.abc import Iterable, Mapping
from typing import Any

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import ValidationError

from fimlora_contract.near_names import did_you_mean

_LONGEST = 80  # characters of a value that are said again
Schema = Mapping[str, Any]


class ToldServer(MCPServer[Any]):
    """A server that refuses arguments in its own words, also those that its tools do not have."""

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Any | None = None
    ) -> Any:
        """Call a tool.

        Args:
            name: The tool.
            arguments: Its arguments, by name.
            context: Of the call.

        Raises:
            ToolError: There is no such tool, an argument is wrong, or the tool failed.
        """
        tools = {tool.name: tool.input_schema for tool in await self.list_tools()}
        if name not in tools:
            near = did_you_mean(name, tools)
            raise ToolError(f"there is no tool {name!r}; there are {', '.join(tools)}{near}")
        schema = tools[name]
        if unknown := sorted(arguments.keys() - schema["properties"].keys()):
            raise ToolError(_refusal(name, (_unknown(each, schema) for each in unknown)))
        try:
            return await super().call_tool(name, arguments, context)
        except ToolError as error:
            if not isinstance(error.__cause__, ValidationError):
                raise
            wrong = error.__cause__.errors(include_url=False)
            lines = (_wrong(each, schema) for each in wrong)
            raise ToolError(_refusal(name, lines)) from error.__cause__


def _refusal(tool: str, lines: Iterable[str]) -> str:
    return f"{tool}: {'; '.join(lines)}. Next: {tool} again with that corrected."


def _unknown(argument: str, schema: Schema) -> str:
    known = schema["properties"]
    near = did_you_mean(argument, known)
    return f"there is no argument {argument!r:.{_LONGEST}}; there are {', '.join(known)}{near}"


def _wrong(found: Mapping[str, Any], schema: Schema) -> str:
    """One argument that is missing, or is not what it must be, and what it is about."""
    place = [str(part) for part in found["loc"]]
    about = schema["properties"].get(place[0], {}).get("description", "")
    is_about = f" ({about.rstrip('.')})" if about else ""
    if found["type"] == "missing":
        return f"{'.'.join(place)} is missing{is_about}"
    must = str(found["msg"]).replace("Input should be", "must be").replace("a valid ", "a ")
    return f"{'.'.join(place)} {must}, got {found['input']!r:.{_LONGEST}}{is_about}"
