"""What becomes of an attempt that the disk, or what keeps the results, refuses.

Mostly it is no fault of the job's, and it passes: the attempt waits, says for what, and is given back
uncounted. Only a job that is refused again and again while the storage works ends by it. The parent
process imports this: nothing here may load torch.
"""

import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from fimlora_jobs.disk import describe_refusal, refusal_in
from fimlora_jobs.results.store import ArtifactStore, StorageUnavailable
from fimlora_worker.errors import ShutdownRequested

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 15.0
# An attempt waits no longer than this; the next one may have better luck with another worker.
LONGEST_HOLD_S = 600.0
SIGN_S = 0.5
PROBE = bytes(1 << 16)
T = TypeVar("T")
log = logging.getLogger(__name__)


def wait_for_storage(
    *,
    n_before: int,
    is_usable: Callable[[], bool],
    on_wait: Callable[[], None],
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait until it makes sense to try again.

    Args:
        n_before: How often the job has waited before: each time it is longer.
        is_usable: Whether something can be written now.
        on_wait: Called all the while; ends the wait by raising.
        sleep: Waits some seconds.
    """
    pause_s = min(FIRST_PAUSE_S * 2.0 ** min(n_before, 10), LONGEST_PAUSE_S)
    waited_s = 0.0
    while waited_s < pause_s or (waited_s < LONGEST_HOLD_S and not is_usable()):
        on_wait()
        sleep(SIGN_S)
        waited_s += SIGN_S


def is_usable(folder: Path, artifacts: ArtifactStore) -> bool:
    """Whether work can be done in a folder, and its results can be kept."""
    try:
        artifacts.check()
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(PROBE)
    except (OSError, StorageUnavailable):
        return False
    return True


def until_allowed(
    step: Callable[[], T],
    *,
    is_draining: Callable[[], bool] = lambda: False,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Take a step, as often as it needs until the disk allows it.

    Raises:
        ShutdownRequested: The disk refuses, and the process is to leave.
    """
    said = ""
    while True:
        try:
            return step()
        except OSError as error:
            number = refusal_in(error)
            if number is None:
                raise
            reason = describe_refusal(number)
            if is_draining():
                raise ShutdownRequested(reason) from error
            if reason != said:
                said = reason
                log.warning("storage.refused", extra={"reason": reason}, exc_info=True)
        sleep(FIRST_PAUSE_S)
