"""Stops the children of a supervisor that was killed before it could do so itself.

Runs as its own process, by path and with the standard library only, so that it starts in
milliseconds. It reads ``+pid`` and ``-pid`` lines; end of file means that the supervisor is
gone, and then every child still on the list is stopped, the last started first.
"""

import contextlib
import os
import signal
import sys
import time

GRACE_S = 10.0


def main() -> None:
    """Keep the list until the supervisor is gone, then clear up."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    children: list[int] = []
    for line in sys.stdin:
        pid = int(line[1:])
        if line[0] == "+":
            children.append(pid)
        elif pid in children:
            children.remove(pid)
    for pid in reversed(children):
        stop(pid, grace_s=GRACE_S)


def stop(pid: int, *, grace_s: float) -> None:
    """Ask a process to end, and end its whole group if it does not or leaves some behind."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while time.monotonic() < deadline:
            os.kill(pid, 0)
            time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
