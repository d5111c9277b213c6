"""Results in a local folder: written beside, synced, then renamed once to their address."""

import contextlib
import errno
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from fimlora_jobs.disk import sync, sync_folder
from fimlora_jobs.results.notes import LocalNotes
from fimlora_jobs.results.store import (
    MANIFEST,
    PREFIX,
    Manifest,
    ResultMissing,
    StorageUnavailable,
    StoredFile,
    StoredResult,
    describe_file,
    digest_named,
    find_file,
    folder_name,
    make_manifest,
)

PROBE = bytes(4096)
ALREADY_THERE = frozenset({errno.ENOTEMPTY, errno.EEXIST})


@dataclass(frozen=True, slots=True)
class LocalArtifacts:
    """Results as folders under their digests; a folder of that name is complete.

    Attributes:
        root: The folder of all results.
    """

    root: Path

    @property
    def notes(self) -> LocalNotes:
        """Notes in folders beside those of results."""
        return LocalNotes(self.root)

    def commit(self, folder: Path, files: Sequence[StoredFile]) -> str:
        """Move a finished folder to its content address; it may have been there already."""
        manifest = make_manifest(files)
        (folder / MANIFEST).write_text(manifest.model_dump_json(), encoding="utf-8")
        sync_folder(folder)
        self._rename(folder, self._folder(manifest.digest))
        sync(self.root)
        return manifest.digest

    def exists(self, digest: str, name: str = MANIFEST) -> bool:
        """Whether a result, or one of its files, is there."""
        folder = self._folder(digest)
        return folder.is_dir() if name == MANIFEST else (folder / name).is_file()

    def stat(self, digest: str, name: str) -> StoredFile:
        """Size and digest of a file."""
        path = self.local(digest, name)
        try:
            manifest = Manifest.model_validate_json((path.parent / MANIFEST).read_bytes())
        except FileNotFoundError:
            return describe_file(path)  # committed before there were manifests
        return find_file(manifest, name)

    def open(self, digest: str, name: str) -> BinaryIO:
        """A file's bytes."""
        try:
            return (self._folder(digest) / name).open("rb")
        except FileNotFoundError:
            raise _missing(digest, name) from None

    def local(self, digest: str, name: str) -> Path:
        """The file itself."""
        path = self._folder(digest) / name
        if not path.is_file():
            raise _missing(digest, name)
        return path

    def list(self) -> Iterator[StoredResult]:
        """All results that are there."""
        for folder in sorted(self.root.glob(f"{PREFIX}*")):
            with contextlib.suppress(FileNotFoundError):  # deleted while we look
                yield StoredResult(
                    digest_named(folder.name),
                    {path.name: path.stat().st_size for path in folder.iterdir()},
                    folder.stat().st_mtime_ns // 1_000_000,
                )

    def delete(self, digest: str) -> None:
        """Delete a result in one step as others see it; open files can be read on."""
        gone = self.root / f".deleted-{uuid4().hex}"
        with contextlib.suppress(FileNotFoundError):
            self._folder(digest).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def remove_leftovers(
        self,
        *,
        before_ms: int,
        may_delete: Callable[[str], bool],  # noqa: ARG002
    ) -> None:
        """Delete what commits and deletions that never ended have left, under names of its own."""
        for pattern in (".deleted-*", ".incoming-*"):
            for left in self.root.glob(pattern):
                with contextlib.suppress(FileNotFoundError):
                    if left.stat().st_mtime_ns >= before_ms * 1_000_000:
                        continue
                    if left.is_dir():
                        shutil.rmtree(left, ignore_errors=True)
                    else:
                        left.unlink()

    def check(self) -> None:
        """Try to write a file."""
        try:
            with tempfile.NamedTemporaryFile(prefix=".ready-", dir=self.root) as file:
                file.write(PROBE)  # without a byte in it, a file needs no space
        except OSError as error:
            raise StorageUnavailable(f"cannot be written: {error.strerror}") from error

    def _folder(self, digest: str) -> Path:
        return self.root / folder_name(digest)

    def _rename(self, folder: Path, target: Path) -> None:
        try:
            folder.rename(target)
        except OSError as error:
            if error.errno == errno.EXDEV:
                self._copy(folder, target)
            elif error.errno not in ALREADY_THERE:
                raise

    def _copy(self, folder: Path, target: Path) -> None:
        """Bring the folder to this file system first: only there a rename is one step."""
        beside = self.root / f".incoming-{uuid4().hex}"
        try:
            beside.mkdir()
            for path in folder.iterdir():  # not copytree: it hides why it cannot
                shutil.copyfile(path, beside / path.name)
            sync_folder(beside)
            self._rename(beside, target)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def _missing(digest: str, name: str) -> ResultMissing:
    return ResultMissing(f"there is no {name!r} of result {digest}")
