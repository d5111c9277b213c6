"""How far a measurement was that was cut off, kept for the next attempt of its job.

One folder per job, one file per attempt in it and way to measure. An attempt takes the file
of an earlier one over by renaming it: should that one still be alive and save again, it
writes a file of its own, which nobody reads any more.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fimlora import ProgressFile
from fimlora.errors import InvalidProgress

log = logging.getLogger(__name__)
# Statistics, or the sums of a shard.
Found = TypeVar("Found")


@dataclass(frozen=True)
class MeasurementProgress:
    """The files of one attempt.

    Attributes:
        folder: The job's folder; created when it is needed.
        attempt: The attempt.
        model_digest: Digest of the base model.
        on_resume: Called with (batches done, batches expected) when it goes on from a file.
    """

    folder: Path
    attempt: int
    model_digest: str
    on_resume: Callable[[int, int], None]

    def go_on(self, way: str, measure: Callable[[ProgressFile], Found]) -> Found:
        """Measure, from where an earlier attempt was if that can be.

        Args:
            way: The way to measure; sums of one are no use to another.
            measure: Measures with a file.

        Returns:
            What it gives.
        """
        file = self._take_over(way)
        try:
            return measure(file)
        except InvalidProgress as refused:
            log.warning("progress.refused", extra={"error": str(refused)})
            Path(file.path).unlink(missing_ok=True)
        return measure(file)

    def _take_over(self, way: str) -> ProgressFile:
        """Name this attempt's file, and put the newest one of an earlier attempt there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        own = self.folder / f"{self.attempt}.{way}"
        for attempt in range(self.attempt - 1, 0, -1):
            for half_written in self.folder.glob(f".{attempt}.{way}.*"):
                half_written.unlink(missing_ok=True)
            with suppress(FileNotFoundError):
                if not own.exists():
                    (self.folder / f"{attempt}.{way}").rename(own)
        return ProgressFile(
            own,
            model_digest=self.model_digest,
            on_resume=self.on_resume,
            on_error=lambda error: log.warning(
                "progress.not_saved", extra={"error": str(error)}
            ),
        )
