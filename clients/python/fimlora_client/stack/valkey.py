"""How the embedded server is run: append-only file on, unix socket only, nothing evicted."""

import contextlib
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fimlora_client.stack.errors import StackError
from fimlora_client.stack.server_binary import ServerBinary

SOCKET_PATH_LIMIT = 100  # the kernels allow 104 (macOS) or 108 bytes (Linux)


def server_command(binary: ServerBinary, *, socket_path: Path, folder: Path) -> list[str]:
    """The command line: jobs survive a crash, and a full memory refuses instead of forgetting."""
    return [
        str(binary.path),
        "--port", "0",
        "--unixsocket", str(socket_path),
        "--unixsocketperm", "700",
        "--appendonly", "yes",
        "--appendfsync", "everysec",
        "--save", "",
        "--maxmemory-policy", "noeviction",
        "--daemonize", "no",
        "--dir", str(folder),
    ]  # fmt: skip


@contextlib.contextmanager
def socket_folder(preferred: Path | None) -> Iterator[Path]:
    """A private folder with a short path, gone when the block ends.

    Raises:
        StackError: Even the shortest path there is would be too long.
    """
    for parent in (preferred, Path("/tmp"), Path(tempfile.gettempdir())):  # noqa: S108
        if parent and parent.is_dir() and len(str(parent)) < SOCKET_PATH_LIMIT - 30:
            folder = Path(tempfile.mkdtemp(prefix="fimlora-", dir=parent))
            break
    else:
        raise StackError(
            "no temporary folder has a path short enough for a socket",
            "Set XDG_RUNTIME_DIR to a folder with a short path.",
        )
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def answers(socket_path: Path) -> bool:
    """Whether the server is up and has loaded its data."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1)
        connection.connect(str(socket_path))
        connection.sendall(b"PING\r\n")
        return connection.recv(16).startswith(b"+PONG")
    return False
