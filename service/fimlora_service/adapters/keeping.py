"""Adapters that are kept here: received or made in a temporary folder, then renamed to their id.

The id is the content of both files, so the same adapter twice is one, whatever it came in,
and a refused one leaves nothing behind.
"""

import errno
import re
import shutil
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fimlora_contract.adapters import Adapter
from fimlora_contract.artifacts import Artifact
from fimlora_contract.digests import digest_file, digest_of
from fimlora_contract.references import HUB_ID
from fimlora_jobs.allow_lists import Allowed
from fimlora_jobs.data_folder import DataFolder
from fimlora_jobs.disk import sync, sync_folder
from fimlora_jobs.results.store import BINARY, MEDIA_TYPES
from fimlora_service.adapters.archive import CONFIG, WEIGHTS, unpack
from fimlora_service.datasets.owners import META, Room, owned_hex
from fimlora_service.errors import AdapterInUse, AdapterNotFound
from fimlora_service.http.threads import Threads, in_thread
from fimlora_service.keys.principal import Principal

if TYPE_CHECKING:
    from fimlora.adapter.trained.read import TrainedAdapter

FILES = (CONFIG, WEIGHTS, "rank_map.json", "rank_map.svg")
MAX_USERS_NAMED = 100


@contextmanager
def workshop(data_folder: DataFolder) -> Iterator[Path]:
    """A temporary folder, gone afterwards unless it was renamed."""
    work = data_folder.tmp / f"adapter-{uuid.uuid4().hex}"
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


async def receive(body: AsyncIterator[bytes], path: Path) -> None:
    """Write a body down as it comes."""
    with path.open("wb") as file:
        async for chunk in body:
            await in_thread(Threads.FILES, file.write, chunk)


def keep_upload(
    archive: Path, work: Path, *, room: Room, allowed: Allowed
) -> tuple[Adapter, bool]:
    """Keep what was received, if it is a sound adapter.

    Returns:
        The adapter, and whether it is new.

    Raises:
        AdapterInvalid: It is none that can be used; the message says why.
        NotAllowed: It says that it is for a base model which the operator does not allow.
    """
    from fimlora_service.resolve.adapter_reading import is_adalora, read_adalora, read_whole

    folder, plain = work / "adapter", work / "plain"
    folder.mkdir()
    unpack(archive, folder)
    known = read_kept(id_of(folder, room.owner)[0], uploads=room.uploads)
    if known is not None:
        return known, False
    if not is_adalora(folder):
        whole = read_whole(folder)
        check_base(whole, allowed)
        return keep(folder, whole, source="upload", room=room)
    plain.mkdir()
    trained = read_adalora(folder, plain)
    check_base(trained, allowed)
    return keep(folder, trained, source="upload", room=room, peft_type="ADALORA")


def check_base(trained: "TrainedAdapter", allowed: Allowed) -> None:
    """Refuse an adapter of a hub model that is not allowed; a path says nothing.

    Raises:
        NotAllowed: It is one.
    """
    base = trained.config.fields.get("base_model_name_or_path") or ""
    if re.fullmatch(HUB_ID, base):
        allowed.check_model({"source": "hub", "id": base})


def id_of(folder: Path, owner: str) -> tuple[str, str]:
    """Id of what somebody has in a folder, and digest of the two files."""
    digest = digest_of({name: digest_file(folder / name) for name in (CONFIG, WEIGHTS)})
    return f"ad_{owned_hex(digest.removeprefix('sha256:'), owner)[:32]}", digest


def keep(
    folder: Path,
    trained: "TrainedAdapter",
    *,
    source: Literal["upload", "derived"],
    room: Room,
    derived_from: str | None = None,
    peft_type: str = "LORA",
) -> tuple[Adapter, bool]:
    """Rename a folder to its id.

    Returns:
        The adapter, and whether it is new.
    """
    id_, digest = id_of(folder, room.owner)
    if known := read_kept(id_, uploads=room.uploads):
        return known, False
    adapter = describe(id_, trained, source=source).model_copy(
        update={
            "digest": digest,
            "owner": room.owner,
            "derived_from": derived_from,
            "peft_type": peft_type,
            "size": (folder / WEIGHTS).stat().st_size,
            "created_at": datetime.now(UTC),
            "files": _files(folder),
        }
    )
    room.check(sum(path.stat().st_size for path in folder.iterdir()))
    (folder / META).write_text(adapter.model_dump_json(), encoding="utf-8")
    sync_folder(folder)
    try:
        folder.rename(room.uploads / id_)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise
        return read_kept(id_, uploads=room.uploads) or adapter, False  # an equal one was faster
    sync(room.uploads)
    return adapter, True


def describe(
    id_: str, trained: "TrainedAdapter", *, source: Literal["upload", "derived", "local"]
) -> Adapter:
    """What an adapter is, from its config and the head of its file."""
    ranks = [module.rank for module in trained.modules.values()]
    fields = trained.config.fields
    return Adapter(
        id=id_,
        source=source,
        base_model=fields.get("base_model_name_or_path") or None,
        task_type=fields.get("task_type"),
        n_modules=len(ranks),
        rank_min=min(ranks),
        rank_max=max(ranks),
        parameters=trained.parameters,
        size=trained.n_bytes,
    )


def _files(folder: Path) -> list[Artifact]:
    return [
        Artifact(
            name=name,
            digest=digest_file(folder / name),
            size=(folder / name).stat().st_size,
            media_type=MEDIA_TYPES.get(Path(name).suffix, BINARY),
        )
        for name in FILES
        if (folder / name).is_file()
    ]


def find_kept(id_: str, *, uploads: Path, principal: Principal) -> Adapter:
    """An adapter that is kept here, by its id, if it is there for somebody.

    Raises:
        AdapterNotFound: There is none.
    """
    found = read_kept(id_, uploads=uploads)
    if found is None or not principal.sees(found.owner):
        raise AdapterNotFound(f"no adapter {id_!r}")
    return found


def read_kept(id_: str, *, uploads: Path) -> Adapter | None:
    """An adapter that is kept here, whosever it is."""
    try:
        return Adapter.model_validate_json((uploads / id_ / META).read_bytes())
    except FileNotFoundError:
        return None


def list_kept(uploads: Path, *, whose: str | None = None) -> list[Adapter]:
    """All adapters that are kept here, by id, or those of one tenant."""
    listed = []
    for id_ in sorted(path.name for path in uploads.glob("ad_*")):
        found = read_kept(id_, uploads=uploads)  # None: deleted while we look
        if found and whose in (None, found.owner):
            listed.append(found)
    return listed


def delete_kept(
    id_: str,
    *,
    data_folder: DataFolder,
    principal: Principal,
    find_users: Callable[[], list[str]],
) -> None:
    """Remove an adapter that no open job needs.

    It goes in one step; if a job was accepted just before, it is put back in one, too.

    Raises:
        AdapterNotFound: There is none.
        AdapterInUse: Open jobs need it; they are named.
    """
    place = data_folder.uploads / id_
    find_kept(id_, uploads=data_folder.uploads, principal=principal)
    _check_unused(id_, find_users())
    gone = data_folder.tmp / f"deleted-{uuid.uuid4().hex}"
    try:
        place.rename(gone)
    except FileNotFoundError:
        raise AdapterNotFound(f"no adapter {id_!r}") from None
    try:
        _check_unused(id_, find_users())
    except AdapterInUse:
        with suppress(OSError):  # the same adapter has come again
            gone.rename(place)
        raise
    finally:
        shutil.rmtree(gone, ignore_errors=True)


def _check_unused(id_: str, users: list[str]) -> None:
    """Refuse to delete what open jobs need."""
    if users:
        raise AdapterInUse(
            f"adapter {id_!r} is needed by {len(users)} jobs that have not ended",
            errors=[{"job_id": job_id} for job_id in users[:MAX_USERS_NAMED]],
        )
