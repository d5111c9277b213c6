"""A small file system of its own under a folder, which can be full or read-only for a while."""

import contextlib
import os
import subprocess
import time
from pathlib import Path

FILLER = ".filler"
PIECE = 1 << 20


class Unavailable(RuntimeError):
    """This machine cannot play a fault; says why."""


class Volume:
    """A folder on a file system in memory if this process may mount one, else a plain folder."""

    def __init__(self, folder: Path, *, megabytes: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.is_mounted = os.geteuid() == 0 and _succeeds(
            "mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "fimlora", folder
        )

    def fill(self) -> None:
        """Leave no space."""
        self._check()
        with (self.folder / FILLER).open("ab") as filler:
            for size in (PIECE, 4096):
                with contextlib.suppress(OSError):
                    while True:
                        os.posix_fallocate(filler.fileno(), filler.seek(0, 2), size)

    def clear(self) -> None:
        """Give the space back."""
        (self.folder / FILLER).unlink(missing_ok=True)

    def freeze(self) -> None:
        """Refuse every write; a file that is being written is waited for."""
        self._check()
        deadline = time.monotonic() + 5
        while not _succeeds("mount", "-o", "remount,ro", self.folder):
            if time.monotonic() > deadline:
                raise Unavailable(f"{self.folder} is written to all the time")
            time.sleep(0.01)

    def thaw(self) -> None:
        """Take writes again."""
        if self.is_mounted:
            _succeeds("mount", "-o", "remount,rw", self.folder)

    def close(self) -> None:
        """Let go of everything on it."""
        if self.is_mounted:
            _succeeds("umount", "-l", self.folder)

    def _check(self) -> None:
        if not self.is_mounted:
            raise Unavailable("to fill or freeze a file system takes the right to mount one")


def _succeeds(*command: object) -> bool:
    ran = subprocess.run(list(map(str, command)), capture_output=True, check=False)
    return ran.returncode == 0
