"""One owner per data folder: a lock held for life, and a note about who holds it."""

import contextlib
import fcntl
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from fimlora_client.stack.errors import StackError

LOCK, NOTE = "up.lock", "up.json"


@dataclass(frozen=True, slots=True)
class Running:
    """What others may want to know about a running stack."""

    pid: int
    url: str
    redis_url: str
    data_dir: str


@contextlib.contextmanager
def own(data_dir: Path) -> Iterator[None]:
    """Hold the data folder; the kernel lets go of it when this process dies.

    Raises:
        StackError: Another process holds it, or the folder cannot be written.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = (data_dir / LOCK).open("a")
    except OSError as error:
        raise StackError(
            f"cannot write to the data folder {data_dir}: {error.strerror}",
            "Choose another one with --data-dir.",
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise _held(data_dir) from error
        # Kept after the end: a lock file that is removed can be held by two.
        try:
            (data_dir / NOTE).unlink(missing_ok=True)  # of one that was killed
            yield
        finally:
            (data_dir / NOTE).unlink(missing_ok=True)


def announce(data_dir: Path, running: Running) -> None:
    """Leave a note about the running stack, whole or not at all."""
    part = data_dir / f"{NOTE}.part"
    part.write_text(json.dumps(asdict(running), indent=1) + "\n", encoding="utf-8")
    Path(part).replace(data_dir / NOTE)


def find_running(data_dir: Path) -> Running | None:
    """The note of the stack that owns a data folder, if it is ready."""
    try:
        return Running(**json.loads((data_dir / NOTE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _held(data_dir: Path) -> StackError:
    running = find_running(data_dir)
    who = f"process {running.pid} at {running.url}" if running else "another process"
    return StackError(
        f"the data folder {data_dir} is in use by {who}",
        "Use that one, stop it, or choose another folder with --data-dir.",
    )
