"""Make sure that a child never outlives its parent, and so never runs a job twice."""

import ctypes
import os
import signal
import sys
import threading
import time

PR_SET_PDEATHSIG = 1
POLL_EVERY_S = 1.0


def die_with_parent(parent: int) -> None:
    """Have the kernel end this process with its parent; end at once if that is gone.

    Args:
        parent: The parent's process id as the parent knew it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        watcher = threading.Thread(target=_poll, args=(parent,), daemon=True)
        watcher.start()
    if os.getppid() != parent:  # it died before the kernel was asked
        os._exit(1)


def _poll(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_EVERY_S)
    os._exit(1)
