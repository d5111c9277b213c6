"""The warm child: ``python -m fimlora_worker.process.child``, started by `horse` and by nobody else.

It takes orders one at a time, in its main thread (RQ's timeout works by signals), and keeps
the models it has loaded. It ends when its orders end, when its parent dies, or when it
thinks a new process would serve better.
"""

import argparse
import importlib
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType

from fimlora_worker.errors import ShutdownRequested
from fimlora_worker.job.storage import until_allowed
from fimlora_worker.job.worker_process import WorkerProcess, process_for
from fimlora_worker.logs import configure_logging, rq_fields
from fimlora_worker.process.horse import DRAIN_SIGNAL
from fimlora_worker.process.imports import uncollected_imports
from fimlora_worker.process.messages import Order, Reply, decode_order, encode
from fimlora_worker.process.parent_death import die_with_parent
from fimlora_worker.process.warm_worker import run_order
from fimlora_worker.settings import Settings

log = logging.getLogger(__name__)
# No success: the parent is to give back an order that nobody has begun.
LEFT_EARLY = 1
HEAVY = (
    "torch",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "fimlora.measuring.resident",
    "fimlora.adapter.write",
    "fimlora_worker.job.calibration",
)


@dataclass
class Drain:
    """Whether the parent wants this process to leave, also before there is anything to leave.

    Attributes:
        is_asked: It does.
        process: What runs jobs, once that is there.
    """

    is_asked: bool = False
    process: WorkerProcess | None = None

    def ask(self) -> None:
        """Note it; runs inside a signal handler."""
        self.is_asked = True
        if self.process:
            self.process.is_draining = True

    def watch(self, process: WorkerProcess) -> None:
        """Tell a process of it, now and later."""
        self.process = process
        if self.is_asked:  # never the other way: a signal may come between any two steps
            process.is_draining = True


def main(arguments: Sequence[str] | None = None) -> int:
    """Take orders until there are no more."""
    parser = argparse.ArgumentParser(prog="python -m fimlora_worker.process.child")
    parser.add_argument("--orders", type=int, required=True)
    parser.add_argument("--replies", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--logs", type=int, required=True)
    given = parser.parse_args(arguments)
    die_with_parent(given.parent)
    settings = Settings()
    # Standard output and error are the parent's to read: it knows what is printed there, and
    # has the last words of a child that was killed.
    logs = os.fdopen(given.logs, "w", buffering=1)
    configure_logging(settings, process="child", stream=logs)
    drain = Drain()
    _take_signals(drain)
    try:
        process = _start(settings, drain)
    except ShutdownRequested as reason:
        log.warning("child.left", extra={"reason": str(reason)})
        return LEFT_EARLY
    process.imports = threading.Thread(target=import_heavy, daemon=True)
    process.imports.start()
    with os.fdopen(given.orders, "rb") as orders, os.fdopen(given.replies, "wb", 0) as replies:
        _write(
            replies.fileno(), encode(Reply("", None))
        )  # from now on orders are taken at once
        for jobs, line in enumerate(orders, start=1):
            reply = _obey(decode_order(line), process, replies.fileno(), jobs=jobs)
            replies.write(encode(reply))
            if reply.retiring:
                break
    return 0


def _start(settings: Settings, drain: Drain) -> WorkerProcess:
    process = until_allowed(lambda: process_for(settings), is_draining=lambda: drain.is_asked)
    drain.watch(process)
    until_allowed(settings.leave_working_folder, is_draining=lambda: drain.is_asked)
    return process


def _obey(order: Order, process: WorkerProcess, replies: int, *, jobs: int) -> Reply:
    alive = encode(Reply(order.execution_id, None))
    process.on_alive = lambda: _write(replies, alive)
    process.on_alive()
    try:
        run_order(order, process.redis)
    except Exception:
        log.exception("order.failed", extra=rq_fields(order.job_id))
        return Reply(order.execution_id, 1, retiring=True)
    return Reply(order.execution_id, 0, retiring=_should_retire(process, jobs=jobs))


def _write(replies: int, line: bytes) -> None:
    os.write(replies, line)


def _should_retire(process: WorkerProcess, *, jobs: int) -> bool:
    settings = process.settings
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_bytes = peak * (1 if sys.platform == "darwin" else 1024)
    grown = peak_bytes - process.models.largest_bytes > settings.recycle_after_growth_bytes
    return process.must_retire or jobs >= settings.recycle_after_jobs or grown


def _take_signals(drain: Drain) -> None:
    def ask(_signum: int, _frame: FrameType | None) -> None:
        drain.ask()

    # The parent decides when to stop; a terminal's Ctrl+C reaches every process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(DRAIN_SIGNAL, ask)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {DRAIN_SIGNAL})


def import_heavy() -> None:
    """Import what jobs need, up to the first that cannot be."""
    with uncollected_imports():
        for name in HEAVY:
            try:
                importlib.import_module(name)
            except ImportError:
                # The job says so again.
                log.exception("import.failed", extra={"imported": name})
                return


if __name__ == "__main__":
    sys.exit(main())
