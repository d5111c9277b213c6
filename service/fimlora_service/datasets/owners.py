"""Whose uploads are: an id stands for the content and its owner, so that no two tenants share one."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import Depends

from fimlora_service.errors import QuotaUsedUp
from fimlora_service.http.dependencies import DataFolderDep, SettingsDep
from fimlora_service.keys.principal import PrincipalDep

META = "meta.json"


def owned_hex(content_hex: str, owner: str) -> str:
    """What an id is made of; of the content alone for what is the operator's."""
    if not owner:
        return content_hex
    return hashlib.sha256(f"{owner} {content_hex}".encode()).hexdigest()


def owner_of(folder: Path) -> str:
    """Whose an upload is; empty for the operator's, and for what is not there."""
    try:
        return str(json.loads((folder / META).read_bytes()).get("owner") or "")
    except (FileNotFoundError, NotADirectoryError):
        return ""


@dataclass(frozen=True, slots=True)
class Room:
    """What somebody may keep.

    Attributes:
        uploads: Where all that is uploaded, or made of uploads, is kept.
        owner: Whose it is; empty for the operator.
        most: How many bytes of it there may be; 0 for any number.
    """

    uploads: Path
    owner: str = ""
    most: int = 0

    def check(self, adding: int) -> None:
        """See that something may be kept besides what there is.

        Raises:
            QuotaUsedUp: It may not.
        """
        if not self.most:
            return
        used = sum(map(_size, self._folders()))
        if used + adding > self.most:
            raise QuotaUsedUp(
                f"{used:,} of {self.most:,} bytes are used by uploads and adapters of this tenant, "
                f"and {adding:,} more do not fit (FIMLORA_MAX_STORED_BYTES_PER_TENANT)",
                next_step="Delete datasets or adapters that are not needed, or ask the operator.",
            )

    def _folders(self) -> Iterator[Path]:
        return (folder for folder in self.uploads.iterdir() if owner_of(folder) == self.owner)


async def _room(
    principal: PrincipalDep, settings: SettingsDep, data_folder: DataFolderDep
) -> Room:
    most = settings.max_stored_bytes_per_tenant
    return Room(data_folder.uploads, principal.tenant, most)


RoomDep = Annotated[Room, Depends(_room)]


def _size(folder: Path) -> int:
    try:
        return sum(file.stat().st_size for file in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return 0  # deleted while we look
