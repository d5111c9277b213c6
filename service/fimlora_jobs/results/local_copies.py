"""Copies of remote files on this machine, by content, the most recently used ones."""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from fimlora_contract.digests import digest_file


@dataclass(frozen=True, slots=True)
class LocalCopies:
    """Files by digest in one folder; processes may share it.

    Attributes:
        folder: Where the copies are.
        limit_bytes: What all copies together may take; the newest one may be larger.
    """

    folder: Path
    limit_bytes: int = 1 << 30

    def get(self, digest: str, fetch: Callable[[Path], None]) -> Path:
        """The copy of a file, fetched when there is none.

        Args:
            digest: Of the file's bytes.
            fetch: Writes the file to a path.

        Raises:
            ValueError: What was fetched has another digest.
        """
        copy = self.folder / digest.partition(":")[2]
        with suppress(FileNotFoundError):
            os.utime(copy)
            return copy
        self.folder.mkdir(parents=True, exist_ok=True)
        incoming = self.folder / f".{uuid4().hex}"
        try:
            fetch(incoming)
            if (found := digest_file(incoming)) != digest:
                raise ValueError(f"the file should have digest {digest}, it has {found}")
            incoming.rename(copy)
        finally:
            incoming.unlink(missing_ok=True)
        self._prune(keep=copy)
        return copy

    def _prune(self, *, keep: Path) -> None:
        used = []
        for path in self.folder.glob("[0-9a-f]*"):
            with suppress(FileNotFoundError):  # another process prunes, too
                used.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        total = sum(size for _, size, _ in used)
        for _, size, path in sorted(used):
            if total <= self.limit_bytes:
                return
            if path != keep:
                path.unlink(missing_ok=True)
                total -= size
