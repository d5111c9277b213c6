"""A warm child that the disk does not let start."""

import os
import signal
import threading
from contextlib import closing
from pathlib import Path

from fimlora_worker.process.horse import Horse
from fimlora_worker.process.messages import Order
from support.small_disk import small_disk
from support.workers import PYTHONPATH

PATIENCE_S = 90.0  # it imports for a while


def test_a_child_that_the_disk_refuses_leaves_when_it_is_told_to(tmp_path: Path):
    """Its parent hears that the order was not obeyed, and gives the job back."""
    with small_disk(tmp_path / "data") as disk:
        disk.forbid()
        here = {"FIMLORA_DATA_DIR": str(disk.folder), "REDIS_URL": "redis://127.0.0.1:9"}
        with closing(Horse({**os.environ, **here, "PYTHONPATH": PYTHONPATH})) as horse:
            too_late = threading.Timer(PATIENCE_S, horse.kill)
            too_late.start()
            horse.give(Order("rq:worker:w", "job_1-1", "fimlora", "e1"))
            horse.drain()
            status = horse.wait()
            too_late.cancel()

    assert not os.WIFSIGNALED(status), signal.Signals(os.WTERMSIG(status))
    assert os.waitstatus_to_exitcode(status) == 1
