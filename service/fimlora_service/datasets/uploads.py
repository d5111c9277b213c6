"""Uploaded datasets: received into a temporary folder, checked, then renamed to their id.

The id is the content, so the same upload twice is one dataset, and a refused upload leaves
nothing behind.
"""

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal

from fimlora_contract.datasets import Dataset
from fimlora_jobs.data_folder import DataFolder
from fimlora_jobs.datasets.checks import survey_upload
from fimlora_jobs.datasets.rows import RowError
from fimlora_jobs.disk import sync
from fimlora_service.datasets.owners import META, Room, owned_hex
from fimlora_service.errors import (
    DatasetEmpty,
    DatasetInUse,
    DatasetNotFound,
    DatasetSchema,
)
from fimlora_service.http.threads import Threads, in_thread
from fimlora_service.http.turns import Turns
from fimlora_service.keys.principal import Principal

MAX_USERS_NAMED = 100
Format = Literal["csv", "jsonl", "parquet"]
MEDIA_TYPES: dict[str, Format] = {
    "application/x-ndjson": "jsonl",
    "application/jsonl": "jsonl",
    "application/vnd.apache.parquet": "parquet",
    "text/csv": "csv",
}


@dataclass(frozen=True, slots=True)
class Received:
    """A body on disk.

    Attributes:
        file: Where it lies.
        hex: Its sha256 in hex.
        size: Its bytes.
    """

    file: Path
    hex: str
    size: int


async def receive_upload(
    body: AsyncIterator[bytes],
    *,
    format: Format,
    data_folder: DataFolder,
    room: Room,
    turns: Turns,
) -> tuple[Dataset, bool]:
    """Keep a body as a dataset of somebody.

    Args:
        body: The body.
        format: What it is.
        data_folder: Where it is received.
        room: Where it is kept, for whom, and how much of it.
        turns: In which its rows are looked through.

    Returns:
        The dataset, and whether it is new.

    Raises:
        DatasetSchema: A row cannot be read; the message names it.
        DatasetEmpty: There are no rows.
        QuotaUsedUp: It is more than the tenant may keep.
    """
    work = data_folder.tmp / f"upload-{uuid.uuid4().hex}"
    work.mkdir()
    try:
        received = await _write(body, work / f"data.{format}")
        commit = partial(_commit, received, format=format, room=room)
        return await turns.run(commit)
    finally:
        shutil.rmtree(work, ignore_errors=True)


async def _write(body: AsyncIterator[bytes], path: Path) -> Received:
    sha, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        async for chunk in body:
            sha.update(chunk)
            size += len(chunk)
            await in_thread(Threads.FILES, file.write, chunk)
    await in_thread(Threads.FILES, sync, path)  # closed, and so out of our own buffer
    return Received(path, sha.hexdigest(), size)


def _commit(received: Received, *, format: Format, room: Room) -> tuple[Dataset, bool]:
    id_ = f"ds_{owned_hex(received.hex, room.owner)[:32]}"
    if known := read_upload(id_, uploads=room.uploads):
        return known, False
    try:
        sighting = survey_upload(received.file)
    except RowError as error:
        raise DatasetSchema(str(error), next_step=error.next_step) from error
    if not sighting.rows:
        raise DatasetEmpty("the upload has no rows")
    dataset = Dataset(
        id=id_,
        source="upload",
        format=format,
        rows=sighting.rows,
        columns=list(sighting.columns),
        size=received.size,
        digest=f"sha256:{received.hex}",
        created_at=datetime.now(UTC),
        owner=room.owner,
    )
    room.check(received.size)
    return _publish(dataset, received.file.parent, uploads=room.uploads)


def _publish(dataset: Dataset, work: Path, *, uploads: Path) -> tuple[Dataset, bool]:
    with (work / META).open("w", encoding="utf-8") as file:
        file.write(dataset.model_dump_json())
        file.flush()
        os.fsync(file.fileno())
    sync(work)
    try:
        work.rename(uploads / dataset.id)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise
        # An equal upload was faster.
        return read_upload(dataset.id, uploads=uploads) or dataset, False
    sync(uploads)
    return dataset, True


def find_upload(id_: str, *, uploads: Path, principal: Principal) -> Dataset:
    """An uploaded dataset by its id, if it is there for somebody.

    Raises:
        DatasetNotFound: There is none.
    """
    found = read_upload(id_, uploads=uploads)
    if found is None or not principal.sees(found.owner):
        raise DatasetNotFound(f"no uploaded dataset {id_!r}")
    return found


def read_upload(id_: str, *, uploads: Path) -> Dataset | None:
    """An uploaded dataset, whosever it is."""
    try:
        return Dataset.model_validate_json((uploads / id_ / META).read_bytes())
    except FileNotFoundError:
        return None


def list_uploads(uploads: Path, *, whose: str | None = None) -> list[Dataset]:
    """All uploaded datasets by id, or those of one tenant."""
    listed = []
    for id_ in sorted(path.name for path in uploads.glob("ds_*")):
        found = read_upload(id_, uploads=uploads)  # None: deleted while we look
        if found and whose in (None, found.owner):
            listed.append(found)
    return listed


def delete_upload(
    id_: str,
    *,
    data_folder: DataFolder,
    principal: Principal,
    find_users: Callable[[], list[str]],
) -> None:
    """Remove an uploaded dataset that no open job needs.

    It goes in one step; if a job was accepted just before, it is put back in one, too.

    Raises:
        DatasetNotFound: There is none.
        DatasetInUse: Open jobs need it; they are named.
    """
    uploads = data_folder.uploads
    find_upload(id_, uploads=uploads, principal=principal)
    check_unused(id_, find_users())
    gone = data_folder.tmp / f"deleted-{uuid.uuid4().hex}"
    try:
        (uploads / id_).rename(gone)
    except FileNotFoundError:
        raise DatasetNotFound(f"no uploaded dataset {id_!r}") from None
    try:
        check_unused(id_, find_users())
    except DatasetInUse:
        put_back(gone, uploads / id_)
        raise
    shutil.rmtree(gone, ignore_errors=True)


def check_unused(id_: str, users: list[str]) -> None:
    """Refuse to delete what open jobs need."""
    if users:
        jobs = "a job that has" if len(users) == 1 else f"{len(users)} jobs that have"
        raise DatasetInUse(
            f"dataset {id_!r} is needed by {jobs} not ended",
            errors=[{"job_id": job_id} for job_id in users[:MAX_USERS_NAMED]],
        )


def put_back(gone: Path, place: Path) -> None:
    """Undo a removal, unless the same bytes have been uploaded again."""
    try:
        gone.rename(place)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise
        shutil.rmtree(gone, ignore_errors=True)
