"""Results whose use is on record, so that none is evicted while somebody needs it."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fimlora_jobs.results.notes import Notes
from fimlora_jobs.results.store import (
    MANIFEST,
    ArtifactStore,
    ResultMissing,
    StoredFile,
    StoredResult,
    make_manifest,
)
from fimlora_jobs.results.usage import ResultUsage

POLL_S = 0.2
log = logging.getLogger(__name__)


class ResultEvicted(ResultMissing):
    """The result was there, and was deleted to make room."""


@dataclass(frozen=True, slots=True)
class TrackedArtifacts:
    """An artefact store that notes every use before it happens.

    Attributes:
        store: What keeps the results.
        usage: Where uses are noted.
        sleep: Waits some seconds.
    """

    store: ArtifactStore
    usage: ResultUsage
    sleep: Callable[[float], None] = time.sleep

    @property
    def notes(self) -> Notes:
        """What keeps small files beside the results."""
        return self.store.notes

    def use(self, digest: str) -> None:
        """Note a use.

        Raises:
            ResultEvicted: It comes too late.
        """
        if not self._may_read(digest):
            raise ResultEvicted(f"result {digest} was deleted to make room")

    def commit(self, folder: Path, files: Sequence[StoredFile]) -> str:
        """Keep a result, after a deletion of the same one that is under way."""
        digest = make_manifest(files).digest
        while not self.usage.revive(digest):
            self.sleep(POLL_S)  # at most as long as a dead process's mark lasts
        self.store.commit(folder, files)
        self.usage.use(digest)  # from here on its time of rest counts
        return digest

    def exists(self, digest: str, name: str = MANIFEST) -> bool:
        """Whether a result, or one of its files, is there and stays for now."""
        return self._may_read(digest) and self.store.exists(digest, name)

    def stat(self, digest: str, name: str) -> StoredFile:
        """Size and digest of a file."""
        self.use(digest)
        return self.store.stat(digest, name)

    def open(self, digest: str, name: str) -> BinaryIO:
        """A file's bytes."""
        self.use(digest)
        return self.store.open(digest, name)

    def local(self, digest: str, name: str) -> Path:
        """A path at which the file, or a copy of it, can be read."""
        self.use(digest)
        return self.store.local(digest, name)

    def list(self) -> Iterator[StoredResult]:
        """All results that are there."""
        return self.store.list()

    def delete(self, digest: str) -> None:
        """Delete a result that was claimed."""
        self.store.delete(digest)

    def remove_leftovers(
        self, *, before_ms: int, may_delete: Callable[[str], bool] = lambda _: True
    ) -> None:
        """Delete what commits and deletions that never ended have left."""
        used, claimed = self.usage.last_uses(), []

        def claim(digest: str) -> bool:
            if not may_delete(digest) or not self.usage.claim(digest, seen_ms=used.get(digest)):
                return False
            claimed.append(digest)
            return True

        try:
            self.store.remove_leftovers(before_ms=before_ms, may_delete=claim)
        finally:
            for digest in claimed:
                self.usage.release(digest)

    def _may_read(self, digest: str) -> bool:
        """Note a use, unless there is no such result; false when it was evicted."""
        noted = self.usage.use(digest)
        if noted is None and self.store.exists(digest):
            noted = self.usage.use(digest, is_there=True)
        return noted is not False

    def check(self) -> None:
        """Raise unless results can be kept now."""
        self.store.check()
