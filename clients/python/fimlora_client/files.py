"""Put the files of a result into a folder, all of them or none.

Every file that is fetched lands in a temporary folder beside the target first and is compared
with its digest; only when all are sound do they move. A file that is there already, with the
right digest, is left untouched.
"""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from fimlora_client.errors import DigestMismatch, InvalidFile
from fimlora_contract.artifacts import Artifact
from fimlora_contract.digests import digest_file

OnFile = Callable[[Artifact], object]


class Download:
    """Files on their way into a folder; a ``with`` block that ends well moves them there.

    Attributes:
        missing: What is to be fetched.
        paths: Where each file will be.

    Raises:
        InvalidFile: The service names a file that would land outside the folder.
    """

    def __init__(self, artifacts: Sequence[Artifact], folder: str | Path) -> None:
        self._folder = Path(folder)
        self.paths = {a.name: self._folder / _checked_name(a.name) for a in artifacts}
        self.missing = [a for a in artifacts if not _is(self.paths[a.name], a.digest)]

    def __enter__(self) -> Self:
        parent = self._folder.parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
            self._staging = Path(tempfile.mkdtemp(prefix=f".{self._folder.name}-", dir=parent))
        except OSError as error:
            raise _cannot_write(self._folder, error) from error
        return self

    def part(self, artifact: Artifact) -> Path:
        """Where a file is kept until all are there."""
        return self._staging / artifact.name

    def all_files(self) -> dict[str, Path]:
        """Where each file is now that will lie in the folder, with what lies there besides."""
        there = {path.name: path for path in self._folder.glob("*")}
        return there | self.paths | {a.name: self.part(a) for a in self.missing}

    def check(self, artifact: Artifact) -> None:
        """Compare a file with its digest.

        Raises:
            DigestMismatch: It is not what the service said.
        """
        digest = digest_file(self.part(artifact))
        if digest != artifact.digest:
            raise DigestMismatch(
                f"{artifact.name} has digest {digest}, the job says {artifact.digest}"
            )

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._move()
        finally:
            shutil.rmtree(self._staging, ignore_errors=True)

    def _move(self) -> None:
        try:
            self._folder.mkdir(exist_ok=True)
            for artifact in self.missing:
                self.part(artifact).replace(self.paths[artifact.name])
        except OSError as error:
            raise _cannot_write(self._folder, error) from error


def check_writable(folder: Path) -> None:
    """Try whether files could be put into a folder, which need not be there yet.

    Raises:
        InvalidFile: They could not.
    """
    try:
        for place in (folder.parent, folder):  # files land beside it first
            there = next(path for path in (place, *place.parents) if path.exists())
            with tempfile.TemporaryDirectory(prefix=".fimlora-", dir=there):
                pass
    except OSError as error:
        raise _cannot_write(folder, error) from error


def write_text(path: Path, text: str) -> None:
    """Replace a file by text, as a whole or not at all.

    Raises:
        InvalidFile: It cannot be written.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file, as a whole or not at all.

    Raises:
        InvalidFile: It cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> InvalidFile:
    failure = InvalidFile(f"cannot write {path}: {error.strerror}")
    failure.next_step = "Name another place, or make this one writable."
    return failure


def _is(path: Path, digest: str) -> bool:
    return path.is_file() and digest_file(path) == digest


def _checked_name(name: str) -> str:
    if not name or name != Path(name).name or name.startswith("."):
        raise InvalidFile(f"the service names a file {name!r}, which is not a plain file name")
    return name
