"""Trained adapters by id or name, and where they lie."""

import re
from dataclasses import dataclass
from pathlib import Path

from fimlora_contract.adapters import ADAPTER_ID
from fimlora_jobs.data_folder import DataFolder, registered_names
from fimlora_service.errors import AdapterNotFound


@dataclass(frozen=True, slots=True)
class FoundAdapter:
    """An adapter.

    Attributes:
        id: Its id, or its registered name.
        folder: Where it lies.
        is_kept: Whether it was uploaded or made here; else the operator registered it.
    """

    id: str
    folder: Path
    is_kept: bool


def find_adapter(id_: str, data_folder: DataFolder) -> FoundAdapter:
    """Find an adapter.

    Raises:
        AdapterNotFound: There is none of that id or name.
    """
    if re.fullmatch(ADAPTER_ID, id_):
        folder, is_kept = data_folder.uploads / id_, True
    elif id_ in registered_names(data_folder.adapters):
        folder, is_kept = data_folder.adapters / id_, False
    else:
        known = registered_names(data_folder.adapters)
        raise AdapterNotFound(f"no adapter {id_!r:.100}; registered adapters: {known}")
    if not folder.is_dir():
        raise AdapterNotFound(f"no adapter {id_!r}: its folder is gone")
    return FoundAdapter(id_, folder, is_kept)
