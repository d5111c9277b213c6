"""The warm child process, seen from its parent.

RQ calls the process that does a job its work horse. This one lives on between jobs: it
gets an order through one pipe and answers through another. RQ interrupts the wait for an
answer by SIGALRM whenever it wants to send a heartbeat, and it kills from another thread;
so what was read is stored with that signal blocked, and killing takes a lock.
"""

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from fimlora_worker.messages import Order, decode_reply, encode

DRAIN_SIGNAL = signal.SIGUSR1
FAILED_STATUS = 256  # wait status of exit code 1
REAP_EVERY_S = 0.01
CLOSE_PATIENCE_S = 5.0


@contextmanager
def _blocked(*signals: signal.Signals) -> Iterator[None]:
    try:
        # Inside try: a handler that is already due runs, and may raise, in this very call.
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)


class Horse:
    """One child process and the execution it was given.

    Only the main thread may create one: the kernel ends the child when the thread that
    started it ends.

    Args:
        environment: The child's environment.
        module: What the child runs.
    """

    def __init__(
        self, environment: Mapping[str, str], *, module: str = "fimlora_worker.child"
    ) -> None:
        down_read, self._down = os.pipe()
        self._up, up_write = os.pipe()
        self._ends: tuple[int, ...] = (self._down, self._up)
        os.set_blocking(self._up, False)
        command = [
            sys.executable, "-P", "-m", module, "--orders", str(down_read),
            "--replies", str(up_write), "--parent", str(os.getpid()),
        ]  # fmt: skip
        try:
            # The child inherits a blocked drain signal, so that one sent while its
            # interpreter starts waits for the handler instead of killing it.
            with _blocked(DRAIN_SIGNAL):
                self._process = subprocess.Popen(
                    command,
                    env=environment,
                    pass_fds=(down_read, up_write),
                    stdin=subprocess.DEVNULL,
                    stdout=sys.__stderr__,  # libraries print; the pipe is for replies only
                    start_new_session=True,  # RQ kills by process group
                )
        finally:
            os.close(down_read)
            os.close(up_write)
        self.pid = self._process.pid
        self.is_retiring = False
        self._last_sign_of_life = time.monotonic()
        self._lock = threading.RLock()
        self._in_flight: str | None = None
        self._status: int | None = None
        self._partial = b""
        self._at_end = False

    @property
    def is_usable(self) -> bool:
        """Whether another order can be given."""
        return not (self._at_end or self.is_retiring) and self._process.poll() is None

    def silent_for_s(self) -> float:
        """Seconds since the child was last heard of, or was given its order."""
        return time.monotonic() - self._last_sign_of_life

    def give(self, order: Order) -> None:
        """Hand over an order; the answer is what `wait` returns.

        Raises:
            BrokenPipeError: The child has gone.
        """
        with self._lock:
            self._in_flight, self._status = order.execution_id, None
        self._last_sign_of_life = time.monotonic()
        os.write(self._down, encode(order))

    def wait(self) -> int:
        """Wait for the answer, or for the child's end; a repeated call gives the same.

        Returns:
            A wait status: 0, that of exit code 1, or how the child really ended.
        """
        while self._status is None:
            if self._at_end:
                time.sleep(REAP_EVERY_S)
            else:
                select.select([self._up], [], [])  # an alarm may end this: nothing is lost
            with _blocked(signal.SIGALRM), self._lock:
                if not self._at_end:
                    self._read()
                if self._at_end and self._status is None:
                    self._reap()
        return self._status

    def kill(self, sig: signal.Signals = signal.SIGKILL) -> bool:
        """Kill the child, but only while it works: a late call must not hit an idle one."""
        with self._lock:
            if self._in_flight is None or self._process.poll() is not None:
                return False
            with suppress(ProcessLookupError):
                os.killpg(self.pid, sig)
            return True

    def drain(self) -> None:
        """Ask the child to hand its job over; safe inside a signal handler."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, DRAIN_SIGNAL)

    def close(self) -> None:
        """End the child: it exits by itself when its orders end, else it is killed."""
        for end in self._ends:
            os.close(end)
        self._ends = ()
        try:
            self._process.wait(CLOSE_PATIENCE_S)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()

    def _read(self) -> None:
        with suppress(BlockingIOError):
            data = os.read(self._up, 1 << 16)
            self._at_end = not data
            *lines, self._partial = (self._partial + data).split(b"\n")
            for line in lines:
                self._note(line)

    def _note(self, line: bytes) -> None:
        reply = decode_reply(line)
        self._last_sign_of_life = time.monotonic()
        self.is_retiring |= reply.retiring
        if reply.execution_id != self._in_flight or reply.code is None:
            return  # an answer to an execution that is over, or a sign of life
        self._in_flight = None
        self._status = FAILED_STATUS if reply.code else 0

    def _reap(self) -> None:
        """Learn how the child ended; it has closed its pipe, so it ends now or never."""
        code = self._process.poll()
        if code is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        else:
            self._in_flight = None
            self._status = -code if code < 0 else code << 8
