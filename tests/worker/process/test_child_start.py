"""A warm child that the disk does not let start."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("missing", [None, "transformers"])
def test_after_its_imports_garbage_is_collected_again(missing: str | None):
    """And what is there by then is not searched again; also where a library is missing."""
    code = f"""
import gc, sys
from fimlora_worker.process.child import HEAVY, import_heavy
sys.modules.update(dict.fromkeys({[missing] if missing else []}))
was = gc.get_stats()[2]["collections"]
import_heavy()
searched = gc.get_stats()[2]["collections"] - was
print([name for name in HEAVY if name not in sys.modules], gc.isenabled(), searched, sep=";")
print(gc.get_freeze_count())
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": PYTHONPATH},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    told, n_frozen = ran.stdout.splitlines()
    left, is_collecting, searched = told.split(";")

    assert ("transformers" in left) == bool(missing), ran.stderr
    assert missing or left == "[]"
    assert (is_collecting, searched) == ("True", "0")
    assert int(n_frozen) > 100_000
