"""What the hashes of keys are made with, in the data folder, and the mark that keys are in use.

The mark outlives the store: a service whose keys are lost lets nobody in, instead of everybody.
A second one says that the first key has not let anybody in yet. Its record or the answer with it may
be lost, and then nobody could ever come in; so that key, and no other, may be made again.
"""

import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fimlora_jobs.disk import sync

SIZE = 32


@dataclass(frozen=True, slots=True)
class PepperFile:
    """The pepper and the mark.

    Attributes:
        folder: Where they lie, which is made when it is needed.
    """

    folder: Path

    @property
    def is_in_use(self) -> bool:
        """Whether a key has ever been made."""
        return self._mark.exists()

    def read(self) -> bytes | None:
        """The pepper; ``None`` before one was needed."""
        try:
            return self._pepper.read_bytes()
        except FileNotFoundError:
            return None

    def read_or_make(self) -> bytes:
        """The pepper, the same for all processes that ask at once."""
        if found := self.read():
            return found
        self.folder.mkdir(mode=0o700, exist_ok=True)
        draft = self.folder / f".pepper-{secrets.token_hex(8)}"
        try:
            with os.fdopen(
                os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb"
            ) as f:
                f.write(secrets.token_bytes(SIZE))
                f.flush()
                os.fsync(f.fileno())
            with suppress(FileExistsError):  # another process was faster
                self._pepper.hardlink_to(draft)
        finally:
            draft.unlink(missing_ok=True)
        sync(self.folder)
        return self._pepper.read_bytes()

    def mark_in_use(self) -> None:
        """Note for good that a key was made."""
        self._touch(self._mark)

    @property
    def is_untried(self) -> bool:
        """Whether the first key was made, or was about to be, and none has let anybody in yet."""
        return self._untried.exists()

    def begin_trial(self) -> None:
        """Note that the first key is being made: its owner may not come to know it."""
        self._touch(self._untried)

    def end_trial(self) -> None:
        """Note for good that somebody has a key that is good."""
        with suppress(FileNotFoundError):
            self._untried.unlink()
            sync(self.folder)

    def _touch(self, file: Path) -> None:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        file.touch(mode=0o600)
        sync(self.folder)

    @property
    def _pepper(self) -> Path:
        return self.folder / "pepper"

    @property
    def _mark(self) -> Path:
        return self.folder / "in_use"

    @property
    def _untried(self) -> Path:
        return self.folder / "untried"
