"""Where things lie in the data folder that service and worker share."""

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
    def hub(self) -> Path:
        """Cache of hub downloads."""
        return self.root / "hub"


def registered_names(folder: Path) -> list[str]:
    """Names the operator registered in a folder; hidden entries are not names."""
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
