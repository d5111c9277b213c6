"""The command line in a process of its own, on a terminal or into a pipe."""

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from support.service_process import ROOT

COMMAND = [sys.executable, "-m", "fimlora_client.cli"]
PACKAGES = os.pathsep.join(str(ROOT / part) for part in ("clients/python", "service", "worker"))
# What would decide how things look; a test says which of them there are.
LOOKS = ("CI", "NO_COLOR", "FORCE_COLOR", "TERM", "COLORTERM", "TTY_COMPATIBLE", "COLUMNS")


class CommandLine:
    """One running command; what it writes to a terminal, or to standard error, is collected.

    Args:
        arguments: Of the command.
        on_terminal: Whether both outputs are a terminal of eighty columns.
        environment: Variables, beside those that lead to our packages.
        command: What runs instead of `fimlora`.
        folder: Where it runs.
    """

    def __init__(
        self,
        *arguments: str,
        on_terminal: bool = False,
        environment: dict[str, str] | None = None,
        command: list[str] | None = None,
        folder: Path | None = None,
    ) -> None:
        kept = {k: v for k, v in os.environ.items() if k not in LOOKS}
        env = kept | {"PYTHONPATH": PACKAGES} | {"TERM": "xterm-256color"} | (environment or {})
        self._read, write = pty.openpty() if on_terminal else os.pipe()
        if on_terminal:
            env = {"COLUMNS": "80", "LINES": "24"} | env
        self._process = subprocess.Popen(
            [*(command or COMMAND), *arguments],
            stdin=write if on_terminal else subprocess.DEVNULL,
            stdout=write,
            stderr=write,
            env=env,
            cwd=folder,
        )
        os.close(write)
        self._pieces: list[bytes] = []
        self._reader = threading.Thread(target=self._collect, daemon=True)
        self._reader.start()

    @property
    def output(self) -> str:
        """All that it has written so far."""
        return b"".join(self._pieces).decode()

    def wait_for(self, text: str, *, seconds: float = 300.0) -> None:
        """Wait until it has written something."""
        deadline = time.monotonic() + seconds
        while text not in self.output:
            assert time.monotonic() < deadline, f"never wrote {text!r}: {self.output!r}"
            assert self._process.poll() is None or text in self.output, self.output
            time.sleep(0.02)

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self._process.send_signal(signal.SIGINT)

    def end(self, *, seconds: float = 600.0) -> int:
        """Wait for its end; answers the exit code."""
        try:
            code = self._process.wait(seconds)
        finally:
            self._process.kill()
            self._process.wait()
        self._reader.join(10)
        return code

    def _collect(self) -> None:
        try:
            while piece := os.read(self._read, 65536):
                self._pieces.append(piece)
        except OSError:
            pass  # so a terminal ends
        finally:
            os.close(self._read)
