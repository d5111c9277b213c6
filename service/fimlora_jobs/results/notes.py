"""Small files beside the results: what a store of jobs that lost its data is filled from again.

They lie where results lie, so that whatever keeps results, copies them and plays them back has them
too. Only service and workers write there, under names of their own making.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from fimlora_jobs.disk import sync

ENDING = ".json"
# More than any record of ours; what is larger is not one.
MAX_BYTES = 64 << 20
NO_NOTE = frozenset({errno.ENOENT, errno.ELOOP, errno.ENXIO})  # gone, a link, or a socket


class Notes(Protocol):
    """What keeps notes; every method may raise `StorageUnavailable` or an error of the disk's."""

    def put(self, room: str, name: str, content: bytes) -> None:
        """Keep a note, whole or not at all, in place of one of that name."""
        ...

    def names(self, room: str, *, prefix: str = "") -> list[str]:
        """The names of all notes in a room that begin so, in order."""
        ...

    def read(self, room: str, name: str) -> bytes | None:
        """A note; ``None`` if there is none, or what lies there is no file or too large."""
        ...

    def delete(self, room: str, name: str) -> None:
        """Delete a note; deleting it again changes nothing."""
        ...


@dataclass(frozen=True, slots=True)
class LocalNotes:
    """Notes as files in a folder per room.

    Attributes:
        root: The folder of all rooms.
    """

    root: Path

    def put(self, room: str, name: str, content: bytes) -> None:
        """Write beside, bring it to disk, and rename."""
        folder = self.root / room
        folder.mkdir(exist_ok=True)
        incoming = self.root / f".incoming-{uuid4().hex}"
        try:
            with incoming.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            incoming.rename(folder / f"{name}{ENDING}")
            sync(folder)
        finally:
            incoming.unlink(missing_ok=True)

    def names(self, room: str, *, prefix: str = "") -> list[str]:
        """Names without their ending."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self.root / room) as found:
            return sorted(
                entry.name.removesuffix(ENDING)
                for entry in found
                if entry.name.startswith(prefix or "") and is_note(entry.name)
            )
        return []

    def read(self, room: str, name: str) -> bytes | None:
        """A regular file's bytes; no link is followed, and nothing is waited for."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            handle = os.open(self.root / room / f"{name}{ENDING}", flags)
        except OSError as error:
            if error.errno in NO_NOTE:
                return None
            raise
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_BYTES:
            os.close(handle)
            return None
        with os.fdopen(handle, "rb") as file:
            return file.read(MAX_BYTES)

    def delete(self, room: str, name: str) -> None:
        """Unlink."""
        (self.root / room / f"{name}{ENDING}").unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class ObjectNotes:
    """Notes as objects.

    Attributes:
        files: A connected fsspec file system.
        root: Bucket and prefix.
        errors: Turns what the file system raises into our errors.
    """

    files: Any
    root: str
    errors: Callable[[str], AbstractContextManager[None]]

    def put(self, room: str, name: str, content: bytes) -> None:
        """Put an object."""
        with self.errors(name):
            self.files.pipe_file(self._key(room, name), content)

    def names(self, room: str, *, prefix: str = "") -> list[str]:
        """Names of objects without their ending."""
        with self.errors(room):
            try:
                found = self.files.find(f"{self.root}/{room}")
            except FileNotFoundError:
                return []
        names = (str(key).rpartition("/")[2] for key in found)
        return sorted(
            name.removesuffix(ENDING)
            for name in names
            if name.startswith(prefix) and is_note(name)
        )

    def read(self, room: str, name: str) -> bytes | None:
        """An object's bytes."""
        with self.errors(name):
            try:
                if self.files.size(self._key(room, name)) > MAX_BYTES:
                    return None
                content: bytes = self.files.cat_file(self._key(room, name))
            except FileNotFoundError:
                return None
        return content

    def delete(self, room: str, name: str) -> None:
        """Remove an object."""
        with self.errors(name), contextlib.suppress(FileNotFoundError):
            self.files.rm_file(self._key(room, name))

    def _key(self, room: str, name: str) -> str:
        return f"{self.root}/{room}/{name}{ENDING}"


def is_note(name: str) -> bool:
    """Whether a file is a note that was kept whole."""
    return name.endswith(ENDING) and not name.startswith(".")


def each(notes: Notes, room: str) -> Iterator[tuple[str, bytes]]:
    """All notes of a room that can be read, one at a time."""
    for name in notes.names(room):
        if (content := notes.read(room, name)) is not None:
            yield name, content
