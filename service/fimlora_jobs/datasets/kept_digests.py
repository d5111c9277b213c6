"""Digests of large files, kept in the data folder: the weights of a model take minutes to read.

An entry is good for a file of the same path, inode, size, and times of change. The time of the
last change to the inode is among them: no program can set it back, as it can that of the content.
What changed in the last seconds is not kept, as another change may fall into the same tick of a
clock. Whoever may write here may write results as well, so nothing more is to be believed of it.
"""

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from fimlora_contract.digests import digest_bytes

LARGE = 16 << 20  # bytes; what is smaller is read as fast as its entry is found, or nearly
SETTLED_NS = 5_000_000_000
Stamp = tuple[int, int, int, int]  # inode, size, times of change of content and of inode


def stamp_of(state: os.stat_result) -> Stamp:
    """What tells one content of a path from another."""
    return state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


class KeptDigests:
    """Entries of one folder, one file each; safe for several processes.

    Args:
        folder: Where they are; it need not exist, and where it cannot be written nothing is kept.
        large: Bytes from which on a file's digest is kept.
        now_ns: The time, in nanoseconds.
    """

    def __init__(
        self, folder: Path, *, large: int = LARGE, now_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._folder = folder
        self._large = large
        self._now_ns = now_ns

    def find(self, path: Path, stamp: Stamp) -> str | None:
        """Look up a digest.

        Args:
            path: The file's real path.
            stamp: As the file is now.

        Returns:
            Its digest, if it is known of this content.
        """
        if stamp[1] < self._large:
            return None
        found = _read(self._entry(path))
        is_same = found.get("path") == str(path) and found.get("stamp") == list(stamp)
        digest = found.get("digest")
        return digest if is_same and isinstance(digest, str) else None

    def keep(self, path: Path, stamp: Stamp, digest: str) -> None:
        """Keep a digest for the next process; entries of files that are gone go.

        Args:
            path: The file's real path.
            stamp: As the file was before it was read and after.
            digest: What was read.
        """
        if stamp[1] < self._large or self._now_ns() - max(stamp[2:]) < SETTLED_NS:
            return
        entry = {"path": str(path), "stamp": list(stamp), "digest": digest}
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._forget_gone()
            unfinished = self._folder / f".{uuid4().hex}"
            unfinished.write_text(json.dumps(entry))
            unfinished.replace(self._entry(path))

    def _entry(self, path: Path) -> Path:
        name = digest_bytes(os.fsencode(path)).removeprefix("sha256:")
        return self._folder / f"{name}.json"

    def _forget_gone(self) -> None:
        for entry in self._folder.glob("*.json"):
            if not Path(str(_read(entry).get("path", ""))).exists():
                entry.unlink(missing_ok=True)


def _read(entry: Path) -> dict[str, Any]:
    """An entry; empty if there is none, or none that can be understood."""
    try:
        found = json.loads(entry.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
