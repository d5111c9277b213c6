"""Bring the stack up: Valkey if none is given, the API, the workers; then keep it up."""

import contextlib
import errno
import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fimlora_client.blocking.client import Client
from fimlora_client.context import Context
from fimlora_client.errors import ClientError
from fimlora_client.retries import RetryPolicy
from fimlora_client.stack import valkey
from fimlora_client.stack.children import Program
from fimlora_client.stack.errors import StackError
from fimlora_client.stack.given_store import check_reachable
from fimlora_client.stack.ownership import Running, announce, own
from fimlora_client.stack.server_binary import find_server_binary
from fimlora_client.stack.supervisor import Stopped, Supervisor
from fimlora_contract.environment import hide_password, secrets_of_others
from fimlora_contract.service import Health

# A cold import of torch and transformers takes tens of seconds on a slow disk.
READY_S = 180.0
VALKEY_READY_S = 60.0  # loading a large append-only file takes a while
WORKER_GRACE_S = 20.0
# What the two processes import first, and the extra that brings it.
# Said before somebody waits for it.
NO_GPU = (
    " (the torch of PyPI brings CUDA, about 6 GB; without a GPU add "
    "--extra-index-url https://download.pytorch.org/whl/cpu)"
)
NEEDED = {"fastapi": "service", "uvicorn": "service", "rq": "service", "torch": "worker"}
MOST_WORKERS = 64


@dataclass(frozen=True, slots=True)
class Options:
    """What the user chose."""

    data_dir: Path
    host: str
    port: int
    workers: int
    redis_url: str | None
    runtime_dir: Path | None
    log_format: str = "text"


@dataclass(frozen=True, slots=True)
class Stack:
    """A stack that is ready.

    Attributes:
        url: Where the API listens.
        store: What holds the jobs, in words.
        durability: Whether what is accepted survives a loss of power, in words.
        access: Who is served, in words.
        workers: Number of workers.
        data_dir: Where everything is kept.
        logs: Folder of the log files.
        seconds: How long it took to get ready.
    """

    url: str
    store: str
    durability: str
    access: str
    workers: int
    data_dir: Path
    logs: Path
    seconds: float


def read_workers(wanted: str) -> int:
    """Read how many workers there are to be.

    Args:
        wanted: A number, or ``auto``: the worker itself knows how many GPUs there are.

    Raises:
        StackError: It is neither, or nobody can say.
    """
    if wanted.isdecimal() and 1 <= int(wanted) <= MOST_WORKERS:
        return int(wanted)
    if wanted != "auto":
        raise StackError(
            f"--workers {wanted}: give a number from 1 to {MOST_WORKERS}, or auto",
            "auto starts one worker on every GPU, and one where there is none.",
        )
    check_installed()
    command = [sys.executable, "-m", "fimlora_worker", "--workers", "auto", "--count"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    if asked.returncode != os.EX_OK:
        said = asked.stderr.strip().rpartition("\n")[2]
        raise StackError(
            f"the worker does not say how many GPUs there are: {said}",
            "Give the number of workers, as in --workers 1.",
        )
    return int(asked.stdout)


def run(
    options: Options,
    *,
    say: Callable[[str], None],
    step: Callable[[str], None],
    on_ready: Callable[[Stack], None],
) -> None:
    """Run the stack until it is asked to stop.

    Args:
        options: What the user chose.
        say: Told a sentence when a child dies or comes back.
        step: Told what is being waited for.
        on_ready: Called once, when jobs can be sent.

    Raises:
        StackError: Something is missing or does not stay up.
    """
    started = time.monotonic()
    check_installed()
    data_dir = options.data_dir.absolute()
    with own(data_dir), contextlib.suppress(Stopped), contextlib.ExitStack() as undo:
        logs = data_dir / "logs"
        logs.mkdir(exist_ok=True)
        port = choose_port(options.host, options.port)
        url = f"http://{_in_url(options.host)}:{port}"
        supervisor, redis_url, store = undo.enter_context(
            _with_store(options, data_dir=data_dir, logs=logs, say=say, step=step)
        )
        env = {
            "REDIS_URL": redis_url,
            "REDIS_URL_FILE": "",  # it has been read, and both would be refused
            "FIMLORA_DATA_DIR": str(data_dir),
            "FIMLORA_HOST": options.host,
            "FIMLORA_PORT": str(port),
            "PYTHONUNBUFFERED": "1",
            "FIMLORA_LOG_FORMAT": options.log_format,
        }
        for program in _programs(options, env=env, logs=logs):
            supervisor.start(program)
        step("Starting the API and the worker")
        supervisor.wait_for(_readiness(url), what=url, timeout_s=READY_S)
        announce(data_dir, Running(os.getpid(), url, redis_url, str(data_dir)))
        seconds = time.monotonic() - started
        health = ask_health(url)
        promise, access = health.durability or "unknown", describe_access(health, options.host)
        on_ready(Stack(url, store, promise, access, options.workers, data_dir, logs, seconds))
        try:
            supervisor.watch()
        except Stopped:
            step("Stopping")
            raise


@contextlib.contextmanager
def _with_store(
    options: Options,
    *,
    data_dir: Path,
    logs: Path,
    say: Callable[[str], None],
    step: Callable[[str], None],
) -> Iterator[tuple[Supervisor, str, str]]:
    """A supervisor whose first child is Valkey, unless a server was given."""
    if options.redis_url:
        check_reachable(options.redis_url)
        with Supervisor(say=say) as supervisor:
            yield supervisor, options.redis_url, hide_password(options.redis_url)
        return
    binary = find_server_binary()
    folder = data_dir / "valkey"
    folder.mkdir(exist_ok=True)
    # The socket's folder goes last: the server removes its socket when it stops.
    with (
        valkey.socket_folder(options.runtime_dir) as sockets,
        Supervisor(say=say) as supervisor,
    ):
        socket_path = sockets / "s"
        command = valkey.server_command(binary, socket_path=socket_path, folder=folder)
        step(f"Starting {binary.name}")
        program = Program(
            "valkey",
            command,
            fresh_log(logs, "valkey"),
            without=secrets_of_others("valkey"),
            is_essential=True,
        )
        supervisor.start(program)
        supervisor.wait_for(
            lambda: valkey.answers(socket_path), what=str(socket_path), timeout_s=VALKEY_READY_S
        )
        yield supervisor, f"unix://{socket_path}", f"{binary.name}, unix://{socket_path}"


def _programs(options: Options, *, env: dict[str, str], logs: Path) -> Iterator[Program]:
    service = [sys.executable, "-m", "fimlora_service"]
    hidden = secrets_of_others("service")
    yield Program("service", service, fresh_log(logs, "service"), env, hidden)
    hidden = secrets_of_others("worker")
    for number in range(1, options.workers + 1):
        name = "worker" if options.workers == 1 else f"worker-{number}"
        worker = [sys.executable, "-m", "fimlora_worker"]
        if options.workers > 1:  # each with a GPU of its own, or a share of the cores
            worker += ["--slot", f"{number}/{options.workers}"]
        yield Program(name, worker, fresh_log(logs, name), env, hidden, WORKER_GRACE_S)


def _readiness(url: str) -> Callable[[], bool]:
    """A question whether the service answers and has a worker."""
    client = Client(url, context=Context(policy=RetryPolicy(max_retries=0)))

    def ready() -> bool:
        try:
            return client.health().status == "ok"
        except ClientError:
            return False

    return ready


def ask_health(url: str) -> Health:
    """What the service says of itself; a question that fails ends nothing."""
    with contextlib.suppress(ClientError), Client(url) as client:
        return client.health()
    return Health(status="unavailable")


def describe_access(health: Health, host: str) -> str:
    """Who is served, and what is to be done where others could be.

    Args:
        health: What the service says of itself.
        host: The address that it listens on.
    """
    if health.access != "this_machine":
        return "who has an API key" if health.access else "unknown"
    if host in {"127.0.0.1", "::1", "localhost"}:
        return "this machine only, until there is a key (fimlora keys create)"
    return (
        f"this machine only, although it listens on {host}: others are refused until there is a "
        "key (fimlora keys create NAME --scopes admin, or FIMLORA_ADMIN_KEY)"
    )


def check_installed() -> None:
    """Refuse early when an extra is missing.

    Raises:
        StackError: Names the package and the extra.
    """
    for package, extra in NEEDED.items():
        if importlib.util.find_spec(package) is None:
            raise StackError(
                f"the {extra} needs {package!r}, which is not installed",
                f"pip install 'fimlora[all]'{NO_GPU}",
            )


def choose_port(host: str, port: int) -> int:
    """The port if it is free; 0 stands for any free one.

    Raises:
        StackError: It is taken, or the host is not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError, UnicodeError) as error:
            if _is_wrong_host(error):
                raise StackError(
                    f"--host {host} is no address of this machine",
                    "Leave it out to listen on 127.0.0.1 only; 0.0.0.0 stands for all addresses.",
                ) from error
            raise StackError(
                f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}",
                "Choose another port with --port, or let --port 0 find one.",
            ) from error
        return int(probe.getsockname()[1])


def _is_wrong_host(error: Exception) -> bool:
    """Whether no port could be listened on: the name stands for nothing, or for others."""
    unknown = isinstance(error, socket.gaierror | UnicodeError)
    return unknown or getattr(error, "errno", None) in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}


def fresh_log(logs: Path, name: str) -> Path:
    """Where a child's output goes; the output of the run before is kept beside it."""
    path = logs / f"{name}.log"
    if path.exists():
        path.replace(logs / f"{name}.previous.log")
    return path


def _in_url(host: str) -> str:
    if host in {"0.0.0.0", "::"}:  # noqa: S104  # listening everywhere, we ask locally
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
