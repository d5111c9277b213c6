"""Where things lie in the data folder that service and worker share."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class DataFolder:
    """The data folder.

    Attributes:
        root: Absolute path of the data folder.
    """

    root: Path

    @classmethod
    def create(cls, root: Path) -> "DataFolder":
        """Make the data folder and what belongs in it, as far as they do not exist."""
        folder = cls(root.absolute())
        for name in ("models", "datasets", "adapters", "uploads", "artifacts", "tmp", "hub"):
            (folder.root / name).mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def models(self) -> Path:
        """Registered local base models."""
        return self.root / "models"

    @property
    def datasets(self) -> Path:
        """Registered local datasets."""
        return self.root / "datasets"

    @property
    def adapters(self) -> Path:
        """Registered trained adapters."""
        return self.root / "adapters"

    @property
    def uploads(self) -> Path:
        """Uploaded datasets and adapters, one folder per id."""
        return self.root / "uploads"

    @property
    def artifacts(self) -> Path:
        """Committed results, one folder per content address."""
        return self.root / "artifacts"

    @property
    def tmp(self) -> Path:
        """Unfinished work, on the same file system as everything else."""
        return self.root / "tmp"

    @property
    def digests(self) -> Path:
        """Digests of large files, so that these are not read at every start."""
        return self.root / "digests"

    @property
    def hub(self) -> Path:
        """Cache of hub downloads."""
        return self.root / "hub"


@dataclass(frozen=True, slots=True)
class FreeSpace:
    """How much of a folder's disk is free, against what must stay so.

    Attributes:
        folder: On that disk.
        floor: Bytes.
    """

    folder: Path
    floor: int

    def lacks(self, more: int = 0) -> str:
        """What is lacking to take so many bytes more, in words; empty if nothing is.

        Raises:
            OSError: The disk cannot be asked.
        """
        disk = os.statvfs(self.folder)
        free = disk.f_bavail * disk.f_frsize
        if free - more >= self.floor:
            return ""
        return f"the data folder's disk has {free} bytes free; {self.floor} must stay free" + (
            f" beside {more} that would be added" if more else ""
        )


def registered_names(folder: Path) -> list[str]:
    """Names the operator registered in a folder; hidden entries are not names."""
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
