"""Results in an object store: the files first, the manifest last.

An object store has no rename, but it puts single objects whole or not at all. So the manifest
is what makes a result be there: it is put when all files are, and deleted before any of them.
All objects are named by content, so putting one again changes nothing.
"""

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from fimlora_jobs.results.local import LocalArtifacts
from fimlora_jobs.results.local_copies import LocalCopies
from fimlora_jobs.results.notes import ObjectNotes
from fimlora_jobs.results.store import (
    MANIFEST,
    PREFIX,
    ArtifactStore,
    Manifest,
    ResultMissing,
    StorageUnavailable,
    StoredFile,
    StoredResult,
    digest_named,
    find_file,
    folder_name,
    make_manifest,
)

CHUNK = 1 << 20
READY = ".ready"  # beside the results: an object that says that objects can be put
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# A request must not wait for long for a store that is away; a worker tries again by itself.
OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        "use_listings_cache": False,
        "config_kwargs": {
            "connect_timeout": 3,
            "read_timeout": 30,
            "retries": {"total_max_attempts": 2},
        },
    }
}
Connect = Callable[..., tuple[Any, str]]


def connect_storage(url: str, **options: Any) -> tuple[Any, str]:
    """A file system of fsspec's, which is imported only where results are kept in one."""
    from fsspec.core import url_to_fs

    connected: tuple[Any, str] = url_to_fs(url, **options)
    return connected


def open_artifacts(
    url: str, *, data_dir: Path, connect: Connect = connect_storage
) -> ArtifactStore:
    """What keeps the results of an installation.

    Args:
        url: A URL that fsspec understands; empty for the data folder.
        data_dir: The data folder; copies of remote files are kept there.
        connect: Gives the file system and the path in it that a URL stands for.

    Raises:
        ValueError: The URL cannot be used; says why.
    """
    scheme, has_scheme, path = url.partition("://")
    if not url or scheme == "file":
        root = Path(path) if url else data_dir / "artifacts"
        root.mkdir(parents=True, exist_ok=True)
        return LocalArtifacts(root.absolute())
    if not has_scheme:
        raise ValueError(
            f"the artefact URL must be <scheme>://..., for example s3://bucket; it is {url!r}"
        )
    try:
        files, root_path = connect(url, **OPTIONS.get(scheme, {}))
    except (ImportError, ValueError) as error:
        hint = "; install fimlora[s3]" if scheme == "s3" else ""
        raise ValueError(f"artefacts at {scheme}:// cannot be used: {error}{hint}") from error
    return ObjectArtifacts(files, root_path.rstrip("/"), LocalCopies(data_dir / "fetched"))


@dataclass(frozen=True, slots=True)
class ObjectArtifacts:
    """Results as objects under their digests.

    Attributes:
        files: A connected fsspec file system.
        root: Bucket and prefix.
        copies: Of what is read again and again.
    """

    files: Any
    root: str
    copies: LocalCopies

    @property
    def notes(self) -> ObjectNotes:
        """Notes as objects beside those of results."""
        return ObjectNotes(self.files, self.root, self._errors)

    def commit(self, folder: Path, files: Sequence[StoredFile]) -> str:
        """Put the files, then the manifest; nothing is put when the result is there."""
        manifest = make_manifest(files)
        if self.exists(manifest.digest):
            return manifest.digest
        self.check()  # else a missing bucket would read as a missing result
        with self._errors(manifest.digest):
            for file in files:
                self.files.put_file(
                    str(folder / file.name), self._key(manifest.digest, file.name)
                )
            text = manifest.model_dump_json().encode()
            self.files.pipe_file(self._key(manifest.digest, MANIFEST), text)
        return manifest.digest

    def exists(self, digest: str, name: str = MANIFEST) -> bool:
        """Whether a result, or one of its files, is there."""
        try:
            manifest = self._manifest(digest)
            return name == MANIFEST or bool(find_file(manifest, name))
        except ResultMissing:
            return False

    def stat(self, digest: str, name: str) -> StoredFile:
        """Size and digest of a file."""
        return find_file(self._manifest(digest), name)

    def open(self, digest: str, name: str) -> BinaryIO:
        """A file's bytes, read as they are asked for."""
        self.stat(digest, name)
        with self._errors(digest):
            opened: BinaryIO = self.files.open(
                self._key(digest, name), "rb", block_size=CHUNK, cache_type="readahead"
            )
            return opened

    def local(self, digest: str, name: str) -> Path:
        """A copy of the file, checked against its digest."""
        file, key = self.stat(digest, name), self._key(digest, name)
        with self._errors(digest):
            return self.copies.get(
                file.digest, lambda path: self.files.get_file(key, str(path))
            )

    def list(self) -> Iterator[StoredResult]:
        """All results that are there."""
        for folder, entries in self._folders().items():
            if MANIFEST in entries:
                sizes = {name: int(entry["size"]) for name, entry in entries.items()}
                yield StoredResult(digest_named(folder), sizes, _changed_ms(entries[MANIFEST]))

    def delete(self, digest: str) -> None:
        """Delete the manifest, then the files."""
        try:
            manifest = self._manifest(digest)
        except ResultMissing:
            return
        for name in (MANIFEST, *(file.name for file in manifest.files)):
            with self._errors(digest), suppress(FileNotFoundError):
                self.files.rm_file(self._key(digest, name))

    def remove_leftovers(self, *, before_ms: int, may_delete: Callable[[str], bool]) -> None:
        """Delete objects without a manifest, if none was put since a time."""
        for folder, entries in self._folders().items():
            newest = max(map(_changed_ms, entries.values()))
            is_left = MANIFEST not in entries and newest < before_ms
            if is_left and may_delete(digest_named(folder)):
                for name in entries:
                    with self._errors(folder), suppress(FileNotFoundError):
                        self.files.rm_file(f"{self.root}/{folder}/{name}")

    def _folders(self) -> dict[str, dict[str, dict[str, Any]]]:
        """All objects under a digest: folder, then name, then what is known of it."""
        with self._errors("*"):
            try:
                found = self.files.find(self.root, detail=True)
            except FileNotFoundError:
                return {}  # no object was ever put
        folders: dict[str, dict[str, dict[str, Any]]] = {}
        for key, entry in found.items():
            path, _, name = key.rpartition("/")
            folder = path.rpartition("/")[2]
            if folder.startswith(PREFIX):
                folders.setdefault(folder, {})[name] = entry
        return dict(sorted(folders.items()))

    def check(self) -> None:
        """Ask for an object, and put it the first time.

        Asking alone does not tell: a missing bucket has no such object either.
        """
        key = f"{self.root}/{READY}"
        try:
            with self._errors(READY):
                try:
                    self.files.info(key)
                except FileNotFoundError:
                    self.files.pipe_file(key, b"")
        except ResultMissing as error:
            raise StorageUnavailable(
                "the artefact storage fails: there is no such bucket as its URL names"
            ) from error

    def _key(self, digest: str, name: str) -> str:
        return f"{self.root}/{folder_name(digest)}/{name}"

    def _manifest(self, digest: str) -> Manifest:
        with self._errors(digest):
            text = self.files.cat_file(self._key(digest, MANIFEST))
        return Manifest.model_validate_json(text)

    @contextmanager
    def _errors(self, digest: str) -> Iterator[None]:
        """Turn what dozens of libraries raise for a store that is away into one error.

        A missing object is known by fsspec's contract, a full disk by its number; all else is
        the store's or the network's fault, whichever library reports it.
        """
        try:
            yield
        except FileNotFoundError as error:
            raise ResultMissing(f"there is no result {digest}, or not all of it") from error
        except Exception as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise
            raise StorageUnavailable(
                f"the artefact storage fails: {type(error).__name__}"
            ) from error


def _changed_ms(entry: dict[str, Any]) -> int:
    """When an object was put, by whatever name its file system gives it."""
    when = next((entry[k] for k in ("LastModified", "created", "mtime") if k in entry), None)
    if isinstance(when, datetime):
        return int(when.astimezone(UTC).timestamp() * 1000)
    return int(float(when or 0) * 1000)
