"""Free space: what would be kept is refused while there is less than the operator wants."""

import re
from typing import Annotated

from fastapi import Depends, Request

from fimlora_jobs.data_folder import FreeSpace
from fimlora_service.errors import DiskFull
from fimlora_service.http.dependencies import part

SpaceDep = Annotated[FreeSpace, part("space")]


async def require_space(request: Request, space: SpaceDep) -> None:
    """Refuse a body for which there is no space.

    Raises:
        DiskFull: The message says how much is free.
    """
    declared = request.headers.get("content-length", "")
    size = int(declared) if re.fullmatch(r"[0-9]{1,18}", declared) else 0
    if lacking := space.lacks(size):
        raise DiskFull(lacking)


NeedsSpace = Depends(require_space)
