"""A disk of its own for a folder, which can be filled, made read-only, and put right again."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass
class SmallDisk:
    """A file system in memory, mounted at a folder.

    Attributes:
        folder: Where it is mounted.
    """

    folder: Path

    @property
    def _filler(self) -> Path:
        return self.folder / ".filler"

    def fill(self) -> None:
        """Leave no byte free."""
        with self._filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 16))

    def forbid(self) -> None:
        """Let nothing be written."""
        self._remount("ro")

    def put_right(self) -> None:
        self._remount("rw")
        self._filler.unlink(missing_ok=True)

    def _remount(self, how: str) -> None:
        command = ["mount", "-o", f"remount,{how}", str(self.folder)]
        subprocess.run(command, check=True, capture_output=True)


@contextlib.contextmanager
def small_disk(folder: Path, *, size: str = "16m") -> Iterator[SmallDisk]:
    """Mount one at a folder; skips the test where that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() or shutil.which("mount") is None:
        pytest.skip("only root may mount a disk")
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "fimlora-test", str(folder)]
    mounted = subprocess.run(command, check=False, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
