"""What a stored result is, and what keeps results: a local folder or an object store.

A result is a set of files and a manifest that lists them; its address is the digest of their
names and digests. A result is there when its manifest can be found, complete or not at all,
and what is there never changes until it is deleted. Two attempts that made the same result
commit the same files, so whichever comes first, both have committed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

from fimlora_contract.base import AnswerModel
from fimlora_contract.digests import digest_file, digest_of
from fimlora_jobs.results.notes import Notes

MANIFEST = "manifest.json"
STATISTICS = "statistics.safetensors"  # what other plans are made from
PREFIX = "sha256-"
MEDIA_TYPES = {
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".html": "text/html",
    ".csv": "text/csv",
}
BINARY = "application/octet-stream"


class ResultMissing(LookupError):
    """There is no result under that digest, or it has no such file; it may have been deleted."""


class StorageUnavailable(Exception):
    """What keeps the results does not answer; it may later."""


class StoredFile(AnswerModel):
    """One file of a result."""

    name: str
    digest: str
    size: int
    media_type: str


class Manifest(AnswerModel):
    """All files of a result."""

    format: Literal["fimlora.result/1"] = "fimlora.result/1"
    digest: str
    files: list[StoredFile]


@dataclass(frozen=True, slots=True)
class StoredResult:
    """A result as far as its keeper sees it without opening it.

    Attributes:
        digest: Its address.
        sizes: Bytes of each file by name.
        changed_ms: When it was committed.
    """

    digest: str
    sizes: dict[str, int]
    changed_ms: int

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.sizes.values())


class ArtifactStore(Protocol):
    """What keeps results.

    Every method may raise `StorageUnavailable`; those that read raise `ResultMissing`.
    """

    @property
    def notes(self) -> Notes:
        """What keeps small files beside the results."""
        ...

    def commit(self, folder: Path, files: Sequence[StoredFile]) -> str:
        """Keep a folder as a result and answer its digest; the folder may be used up."""
        ...

    def exists(self, digest: str, name: str = MANIFEST) -> bool:
        """Whether a result, or one of its files, is there."""
        ...

    def stat(self, digest: str, name: str) -> StoredFile:
        """Size and digest of a file."""
        ...

    def open(self, digest: str, name: str) -> BinaryIO:
        """A file's bytes, from its beginning."""
        ...

    def local(self, digest: str, name: str) -> Path:
        """A path at which a file, or a copy of it, can be read on this machine."""
        ...

    def list(self) -> Iterator[StoredResult]:
        """All results that are there."""
        ...

    def delete(self, digest: str) -> None:
        """Delete a result; deleting it again changes nothing."""
        ...

    def remove_leftovers(self, *, before_ms: int, may_delete: Callable[[str], bool]) -> None:
        """Delete what commits and deletions that never ended have left.

        Args:
            before_ms: Only what nothing was added to since then.
            may_delete: Asked by digest right before: a commit may have begun again.
        """
        ...

    def check(self) -> None:
        """Raise `StorageUnavailable` unless results can be kept now."""
        ...


def describe(folder: Path) -> list[StoredFile]:
    """All files of a folder in order of name, without a manifest."""
    return [describe_file(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST]


def describe_file(path: Path) -> StoredFile:
    """Name, digest, size and media type of a file."""
    return StoredFile(
        name=path.name,
        digest=digest_file(path),
        size=path.stat().st_size,
        media_type=MEDIA_TYPES.get(path.suffix, BINARY),
    )


def make_manifest(files: Sequence[StoredFile]) -> Manifest:
    """The manifest of some files."""
    digest = digest_of({file.name: file.digest for file in files})
    return Manifest(digest=digest, files=list(files))


def find_file(manifest: Manifest, name: str) -> StoredFile:
    """A file of a manifest.

    Raises:
        ResultMissing: It lists no such file.
    """
    for file in manifest.files:
        if file.name == name:
            return file
    raise ResultMissing(f"result {manifest.digest} has no file {name!r}")


def folder_name(digest: str) -> str:
    """What the folder of a result is called."""
    return digest.replace(":", "-", 1)


def digest_named(folder: str) -> str:
    """The address that a folder's name stands for."""
    return folder.replace("-", ":", 1)
