"""The real service in a network of its own, with addresses that are not this machine's."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from support.workers import PYTHONPATH

OTHER, OTHER_V6 = "192.0.2.1", "2001:db8::1"
PORT = 8000
SETUP = (
    f"ip link set lo up && ip addr add {OTHER}/32 dev lo && "
    f"ip addr add {OTHER_V6}/128 dev lo nodad && exec "
)
STARTUP_S = 30.0
# Sends what standard input lists, one connection each, and tells the answers.
ASK = """
import json, socket, sys
found = []
for to, at, request in json.load(sys.stdin):
    with socket.create_connection((to, 8000), timeout=10, source_address=(at, 0)) as connection:
        connection.sendall(request.encode("latin-1"))
        found.append(connection.makefile("rb").read().decode("latin-1"))
json.dump(found, sys.stdout)
"""


@dataclass(frozen=True)
class Question:
    """A request on a connection of its own.

    Attributes:
        head: Request line and headers, without Connection.
        at: The address it comes from.
        to: The address it goes to.
    """

    head: str
    at: str = "127.0.0.1"
    to: str = "127.0.0.1"


@dataclass(frozen=True)
class Answer:
    status: int
    head: str
    body: str

    @property
    def code(self) -> str:
        """The code of a problem."""
        return str(json.loads(self.body)["code"])


@dataclass(frozen=True)
class IsolatedService:
    """A running service that only processes in its network reach."""

    process: "subprocess.Popen[bytes]"
    log: Path

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """Ask from within its network."""
        sent = [
            (q.to, q.at, q.head.replace("\n", "\r\n") + "\r\nConnection: close\r\n\r\n")
            for q in questions
        ]
        command = ["nsenter", "-t", str(self.process.pid), "-U", "-n", "--preserve-credentials"]
        done = subprocess.run(
            [*command, sys.executable, "-c", ASK],
            input=json.dumps(sent).encode(), capture_output=True, check=True, timeout=60,
        )  # fmt: skip
        return [_read(text) for text in json.loads(done.stdout)]


def _read(text: str) -> Answer:
    head, _, body = text.partition("\r\n\r\n")
    return Answer(int(head.split(" ", 2)[1]), head, body)


def can_isolate() -> bool:
    """Whether this machine lets us make networks."""
    command = ["unshare", "-rn", "sh", "-c", SETUP + "true"]
    with contextlib.suppress(FileNotFoundError):
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    return False


@contextlib.contextmanager
def isolated_service(
    data_dir: Path, redis_url: str, **environment: str
) -> Iterator[IsolatedService]:
    """Start ``python -m fimlora_service``, listening to everybody in its network; stop it."""
    told = {
        "PYTHONPATH": PYTHONPATH, "REDIS_URL": redis_url, "FIMLORA_DATA_DIR": str(data_dir),
        "FIMLORA_HOST": "0.0.0.0", "FIMLORA_PORT": str(PORT),
    }  # fmt: skip
    log = data_dir / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["unshare", "-rn", "sh", "-c", f"{SETUP}{sys.executable} -m fimlora_service"],
            env=os.environ | told | environment, stdout=output, stderr=output,
        )  # fmt: skip
    service = IsolatedService(process, log)
    try:
        _wait_until_up(service)
        yield service
    finally:
        process.kill()
        process.wait()


def _wait_until_up(service: IsolatedService) -> None:
    deadline = time.monotonic() + STARTUP_S
    probe = [Question("GET /healthz HTTP/1.1\nHost: localhost")]
    while True:
        with contextlib.suppress(subprocess.CalledProcessError):
            service.ask(probe)
            return
        assert service.process.poll() is None, service.log.read_text()
        assert time.monotonic() < deadline, service.log.read_text()
        time.sleep(0.2)
