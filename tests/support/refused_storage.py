"""Do something as soon as a job is seen to wait for storage, while its worker runs here."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from support.jobs import Jobs

PATIENCE_S = 120.0  # the first job of a process imports for a while


@contextlib.contextmanager
def once_it_waits(jobs: Jobs, job_id: str, action: Callable[[], object]) -> Iterator[None]:
    """Watch beside the block, and act; it is an error when the job never waits."""
    seen = threading.Event()

    def watch() -> None:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            progress = jobs.get(job_id).json_field("progress") or {}
            if progress.get("waiting_for"):
                seen.set()
                break
            time.sleep(0.05)
        action()  # in any case, so that nobody waits for ever

    thread = threading.Thread(target=watch)
    thread.start()
    yield
    thread.join()
    assert seen.is_set(), "the job never waited for storage"
