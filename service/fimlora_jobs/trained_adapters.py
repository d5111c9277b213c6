"""Trained adapters as service and worker find them: by id or name, unchanged since."""

import re
from dataclasses import dataclass
from pathlib import Path

from fimlora_contract.adapters import ADAPTER_ID

FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True, slots=True)
class AdapterRooms:
    """Where adapters lie in the data folder.

    Attributes:
        kept: Those that were uploaded or made, by id.
        registered: Those that the operator has given names.
    """

    kept: Path
    registered: Path

    @classmethod
    def of(cls, data_dir: Path) -> "AdapterRooms":
        """The rooms of a data folder."""
        return cls(data_dir / "uploads", data_dir / "adapters")

    def folder_of(self, name: str) -> Path:
        """Where an adapter would lie, by its id or name; the name is a plain one."""
        room = self.kept if re.fullmatch(ADAPTER_ID, name) else self.registered
        return room / name


def adapter_files(folder: Path) -> dict[str, Path]:
    """The two files that an adapter is."""
    return {name: folder / name for name in FILES}
