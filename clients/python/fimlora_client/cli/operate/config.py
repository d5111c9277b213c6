"""``fimlora config``: what this environment sets, in every process that would read it."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated

import typer
from rich.text import Text

from fimlora_client.cli.common.console import SETTINGS, make_table, out, say, show_json
from fimlora_client.settings import read_defaults, read_settings, shown_settings
from fimlora_contract.settings_shown import SettingShown

# What has to be installed for a process to say what it would read, and the extra that brings it.
PROCESSES = {
    "service": ("fimlora_service", "pydantic_settings"),
    "worker": ("fimlora_worker", "pydantic_settings"),
}


@dataclass(frozen=True, slots=True)
class Found:
    """What a process says of its settings: all of them, or why there are none."""

    settings: tuple[SettingShown, ...] = ()
    problem: str = ""
    is_wrong: bool = False


def config(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with defaults.")] = False,
) -> None:
    """Show the settings that hold here, of client, service and worker; secrets are masked.

    For each, where it comes from: its default, the environment, a file that the environment
    names, the project's fimlora.toml (here or in a folder above) or the user's
    ~/.config/fimlora/config.toml. In containers ask there: docker compose exec service python -m fimlora_service --settings.
    """
    found = dict(_all())
    if as_json:
        show_json({name: _as_json(process) for name, process in found.items()})
    else:
        for name, process in found.items():
            _show(name, process)
    if any(process.is_wrong for process in found.values()):
        raise typer.Exit(SETTINGS)


def _all() -> Iterator[tuple[str, Found]]:
    yield "client", Found((*shown_settings(read_settings()), *_defaults()))
    for name, needed in PROCESSES.items():
        yield name, _ask(name, needed)


def _defaults() -> Iterator[SettingShown]:
    """What configuration files have options of `fimlora calibrate` be."""
    for name, default in read_defaults().items():
        value = str(default.value)
        yield SettingShown(
            f"calibrate.{name}", value, default.origin, "option", "", str(default.path)
        )


def _ask(name: str, needed: tuple[str, ...]) -> Found:
    """Have the process itself say it: nothing of it is imported here."""
    if any(importlib.util.find_spec(package) is None for package in needed):
        return Found(problem=f"not installed here: pip install 'fimlora[{name}]'")
    command = [sys.executable, "-m", f"fimlora_{name}", "--settings"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == os.EX_OK:
        return Found(tuple(SettingShown(**row) for row in json.loads(done.stdout)))
    lines = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]
    return Found(problem=lines[-1], is_wrong=done.returncode == SETTINGS)


def _as_json(process: Found) -> object:
    if process.problem:
        return {"problem": process.problem}
    return [asdict(setting) for setting in process.settings]


def _show(name: str, process: Found) -> None:
    if process.problem:
        say((f"{name}: ", "bold"), process.problem)
        return
    table = make_table(name, "value", "from")
    for setting in process.settings:
        style = "dim" if setting.origin == "default" else ""
        table.add_row(
            Text(setting.name), Text(setting.value, style), Text(setting.origin, style)
        )
    out().print(table, "", soft_wrap=True)
