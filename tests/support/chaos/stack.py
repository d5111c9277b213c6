"""The real stack on this machine: Valkey, API processes, workers, and links between them.

```
clients -- link -- API ----- link -- Valkey
                   | worker -- link --'
                   link -- receiver of webhooks
```
"""

import contextlib
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
from redis import Redis
from redis.exceptions import RedisError

from fimlora_client.stack.server_binary import find_server_binary
from fimlora_client.stack.valkey import server_command
from support.chaos.links import Link
from support.chaos.processes import Keeper, Kept
from support.chaos.volume import Unavailable, Volume
from support.jobs import write_jsonl
from support.model_folders import make_encoder
from support.receiver import Receiver, running_receiver
from support.workers import PYTHONPATH

READY_S = 120.0
N_ROWS = 400
VOLUME_MB, FLOOR_MB = 256, 16
DATASET = "rows.jsonl"
FAKETIME = (
    os.environ.get("LIBFAKETIME", ""),
    *map(str, Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")),
)


@dataclass(frozen=True, slots=True)
class Shape:
    """What a stack is made of.

    Attributes:
        n_workers: Workers.
        n_apis: API processes.
        has_clocks: Whether clocks can be set, per process.
        has_receiver: Whether jobs name somebody who is told of their end.
        worker_env: More of a worker's environment.
    """

    n_workers: int = 1
    n_apis: int = 2
    has_clocks: bool = False
    has_receiver: bool = False
    worker_env: tuple[tuple[str, str], ...] = ()


@dataclass
class Stack:
    """A running stack."""

    shape: Shape
    folder: Path
    store_volume: Volume
    data_volume: Volume
    valkey: Kept
    apis: list[Kept] = field(default_factory=list)
    workers: list[Kept] = field(default_factory=list)
    client_links: list[Link] = field(default_factory=list)
    api_link: Link | None = None
    worker_link: Link | None = None
    receiver: Receiver | None = None
    receiver_link: Link | None = None

    @property
    def processes(self) -> list[Kept]:
        """All of them."""
        return [self.valkey, *self.apis, *self.workers]

    @property
    def urls(self) -> list[str]:
        """Where clients find the APIs: behind their links."""
        return [f"http://127.0.0.1:{link.port}" for link in self.client_links]

    @property
    def webhook(self) -> str:
        """What jobs name as their webhook; empty if nobody is told of their end."""
        return f"http://127.0.0.1:{self.receiver_link.port}/" if self.receiver_link else ""

    @property
    def socket(self) -> Path:
        """Where Valkey itself listens."""
        return self.folder / "s"

    def store(self) -> Redis:
        """Straight to Valkey, for faults that are made there."""
        return Redis(unix_socket_path=str(self.socket), socket_timeout=5)

    def set_clock(self, process: Kept, step_s: int) -> None:
        """Put a process's wall clock forward, or back."""
        clock = clock_of(self.folder, process.name)
        written = clock.with_suffix(".new")
        written.write_text(f"{step_s:+d}\n")
        written.replace(clock)  # it is read all the time: never half

    def deaths(self) -> list[str]:
        """Ends that nobody asked for."""
        return [
            f"{process.name} ended with status {status}"
            for process in self.processes
            for status in process.deaths
        ]


@contextlib.contextmanager
def running_stack(shape: Shape, *, keep_logs_in: Path | None = None) -> Iterator[Stack]:
    """Start everything, wait until it is ready, and end it all.

    Args:
        shape: What it is made of.
        keep_logs_in: Where logs are copied to when it ends.

    Raises:
        Unavailable: This machine cannot set clocks, and the shape wants that.
    """
    if shape.has_clocks and not faketime():
        raise Unavailable("libfaketime is not installed (Debian has it); LIBFAKETIME names it")
    # Paths of sockets are limited to about 104 bytes.
    folder = Path(tempfile.mkdtemp(prefix="fl-", dir="/tmp"))
    with contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        if keep_logs_in:
            undo.callback(_copy_logs, folder, keep_logs_in)
        stack = _start_store(shape, folder, undo)
        _fill_data_folder(stack.data_volume.folder)
        if shape.has_receiver:
            _start_receiver(stack, undo)
        _start_apis(stack, undo)
        _start_workers(stack, undo)
        undo.callback(Keeper(*stack.processes).close)
        wait_until_ready(stack)
        yield stack


def wait_until_ready(stack: Stack) -> None:
    """Wait until each API says that there are all the workers."""
    deadline = time.monotonic() + READY_S
    for url in stack.urls:
        while n_living(url) < len(stack.workers):
            if time.monotonic() > deadline:
                raise RuntimeError(f"not ready within {READY_S:g} s: {logs_of(stack)}")
            time.sleep(0.1)


def n_living(url: str) -> int:
    """How many workers an API knows of; -1 while it does not answer."""
    try:
        answer = httpx2.get(f"{url}/workers", timeout=5)
        return len(answer.json()["data"]) if answer.status_code == 200 else -1
    except httpx2.HTTPError:
        return -1


def logs_of(stack: Stack) -> str:
    """The end of each process's log."""
    return "\n".join(f"== {p.name}\n{p.log.read_text()[-1500:]}" for p in stack.processes)


def faketime() -> str:
    """The library that sets clocks; empty where there is none."""
    return next((path for path in FAKETIME if path and Path(path).is_file()), "")


def clock_of(folder: Path, name: str) -> Path:
    """The file that a process's clock is read from."""
    return folder / f"clock-{name}"


def _start_store(shape: Shape, folder: Path, undo: contextlib.ExitStack) -> Stack:
    volumes = [Volume(folder / name, megabytes=VOLUME_MB) for name in ("valkey", "data")]
    for volume in volumes:
        undo.callback(volume.close)
    at = folder / "s"
    command = server_command(find_server_binary(), socket_path=at, folder=volumes[0].folder)
    valkey = _keep("valkey", command, shape, folder, undo, {})
    _wait_for_store(at)
    return Stack(shape, folder, *volumes, valkey)


def _wait_for_store(at: Path) -> None:
    deadline = time.monotonic() + READY_S
    while True:
        with contextlib.suppress(RedisError), Redis(unix_socket_path=str(at)) as redis:
            if redis.ping():
                return
        if time.monotonic() > deadline:
            raise RuntimeError(f"Valkey does not answer on {at}")
        time.sleep(0.02)


def _start_receiver(stack: Stack, undo: contextlib.ExitStack) -> None:
    stack.receiver = undo.enter_context(running_receiver())
    stack.receiver_link = Link(int(stack.receiver.url.rpartition(":")[2]))
    undo.callback(stack.receiver_link.close)


def _start_apis(stack: Stack, undo: contextlib.ExitStack) -> None:
    link = stack.api_link = Link(stack.socket, at=stack.folder / "a")
    undo.callback(link.close)
    for n in range(stack.shape.n_apis):
        port = _free_port()
        env = _environment(stack, "a") | {
            "FIMLORA_PORT": str(port),
            "FIMLORA_MIN_FREE_BYTES": str(FLOOR_MB << 20),
            "FIMLORA_WEBHOOK_HOSTS": stack.webhook.rstrip("/"),
        }
        command = [sys.executable, "-P", "-m", "fimlora_service"]
        stack.apis.append(_keep(f"api-{n}", command, stack.shape, stack.folder, undo, env))
        stack.client_links.append(Link(port))
        undo.callback(stack.client_links[-1].close)


def _start_workers(stack: Stack, undo: contextlib.ExitStack) -> None:
    link = stack.worker_link = Link(stack.socket, at=stack.folder / "w")
    undo.callback(link.close)
    env = _environment(stack, "w") | dict(stack.shape.worker_env)
    command = [sys.executable, "-P", "-m", "fimlora_worker"]
    for n in range(stack.shape.n_workers):
        name = f"worker-{n}"
        stack.workers.append(_keep(name, command, stack.shape, stack.folder, undo, env))


def _keep(
    name: str,
    command: list[str],
    shape: Shape,
    folder: Path,
    undo: contextlib.ExitStack,
    env: dict[str, str],
) -> Kept:
    if shape.has_clocks:
        clock_of(folder, name).write_text("+0\n")
        env = env | {
            "LD_PRELOAD": faketime(),
            "FAKETIME_TIMESTAMP_FILE": str(clock_of(folder, name)),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
    kept = Kept(name, command, log=folder / f"{name}.log", env=env)
    undo.callback(kept.close)
    return kept


def _environment(stack: Stack, link: str) -> dict[str, str]:
    return {
        "REDIS_URL": f"unix://{stack.folder / link}",
        "FIMLORA_DATA_DIR": str(stack.data_volume.folder),
        "PYTHONPATH": PYTHONPATH,
        "OMP_NUM_THREADS": "1",
    }


def _fill_data_folder(data_dir: Path) -> None:
    make_encoder(data_dir / "models" / "tiny")
    rows = [{"text": f"w{n % 50} w{n % 7}", "label": n % 2} for n in range(N_ROWS)]
    write_jsonl(data_dir / "datasets" / DATASET, rows)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _copy_logs(folder: Path, to: Path) -> None:
    to.mkdir(parents=True, exist_ok=True)
    for log in folder.glob("*.log"):
        shutil.copy(log, to)
