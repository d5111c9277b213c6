"""The warm child process, seen from its parent.

RQ calls the process that does a job its work horse. This one lives on between jobs: it
gets an order through one pipe and answers through another. RQ interrupts the wait for an
answer by SIGALRM whenever it wants to send a heartbeat, and the handler raises. Blocking
the signal would not help: another thread gets it then, and the handler still runs in the
main one. So a thread of its own, where no handler ever runs, reads and stores the answers,
and the wait itself consumes nothing that an exception could lose.
"""

import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress

from fimlora_worker.logs import log_printed, rq_fields
from fimlora_worker.process.messages import Order, Reply, decode_reply, encode

log = logging.getLogger(__name__)
DRAIN_SIGNAL = signal.SIGUSR1
FAILED_STATUS = 256  # wait status of exit code 1
CLOSE_PATIENCE_S = 5.0
LAST_WORDS_S = 1.0  # what the child started may hold its end of the pipe for longer


class Horse:
    """One child process and the execution it was given.

    Only the main thread may create one: the kernel ends the child when the thread that
    started it ends.

    Args:
        environment: The child's environment.
        module: What the child runs.
    """

    def __init__(
        self, environment: Mapping[str, str], *, module: str = "fimlora_worker.process.child"
    ) -> None:
        down_read, self._down = os.pipe()
        up, up_write = os.pipe()
        printed, printed_write = os.pipe()
        logs = os.dup(2)
        command = [
            sys.executable, "-P", "-m", module, "--orders", str(down_read),
            "--replies", str(up_write), "--parent", str(os.getpid()), "--logs", str(logs),
        ]  # fmt: skip
        # The child inherits a blocked drain signal, so that one sent while its interpreter
        # starts waits for the handler instead of killing it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {DRAIN_SIGNAL})
        try:
            self._process = subprocess.Popen(
                command,
                env=environment,
                pass_fds=(down_read, up_write, logs),
                stdin=subprocess.DEVNULL,
                stdout=printed_write,  # libraries print; the other pipe is for replies only
                stderr=printed_write,
                start_new_session=True,  # RQ kills by process group
            )
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {DRAIN_SIGNAL})
            for end in (down_read, up_write, printed_write, logs):
                os.close(end)
        self.pid = self._process.pid
        self.is_retiring = False
        self._last_sign_of_life = time.monotonic()
        self._has_spoken = False
        self._is_taken = False
        self._lock = threading.RLock()
        self._in_flight: str | None = None
        self._last_rq_id: str | None = None
        self._status: int | None = None
        self._is_closed = False
        # Readable for as long as there is an answer; only `give` takes the byte out.
        self._answered, self._wake = os.pipe()
        os.set_blocking(self._answered, False)
        self._reader = threading.Thread(target=self._read, args=(up,), daemon=True)
        self._reader.start()
        self._printed = threading.Thread(target=self._relay, args=(printed,), daemon=True)
        self._printed.start()

    @property
    def is_usable(self) -> bool:
        """Whether another order can be given."""
        return not self.is_retiring and self._process.poll() is None and self._reader.is_alive()

    def silent_for_s(self) -> float:
        """Seconds since the child was last heard of, or was given its order."""
        return time.monotonic() - self._last_sign_of_life

    @property
    def is_deaf(self) -> bool:
        """Whether a child that was heard of has not said yet that it has its order."""
        return self._has_spoken and not self._is_taken

    def give(self, order: Order) -> None:
        """Hand over an order; the answer is what `wait` returns.

        Raises:
            BrokenPipeError: The child has gone.
        """
        with self._lock:
            self._in_flight, self._status = order.execution_id, None
            self._is_taken = False
            self._last_rq_id = order.job_id
            with suppress(BlockingIOError):
                os.read(self._answered, 1)
        self._last_sign_of_life = time.monotonic()
        os.write(self._down, encode(order))

    def wait(self) -> int:
        """Wait for the answer, or for the child's end; a repeated call gives the same.

        Returns:
            A wait status: 0, that of exit code 1, or how the child really ended.
        """
        while self._status is None:
            select.select([self._answered], [], [])
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
        if self._is_closed:
            return
        self._is_closed = True
        os.close(self._down)
        self._reader.join(CLOSE_PATIENCE_S)
        if self._reader.is_alive():
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._reader.join()
        self._printed.join(LAST_WORDS_S)
        os.close(self._answered)
        os.close(self._wake)

    # In a thread of its own

    def _relay(self, printed: int) -> None:
        """Log what the child prints, also while it dies."""
        with os.fdopen(printed, encoding="utf-8", errors="backslashreplace") as lines:
            for line in lines:
                if line.strip():
                    about = rq_fields(self._last_rq_id) if self._last_rq_id else {}
                    log_printed(line, child_pid=self.pid, **about)

    # In the reader's thread

    def _read(self, up: int) -> None:
        try:
            with os.fdopen(up, "rb") as replies:
                for line in replies:
                    self._note(decode_reply(line))
        except (ValueError, TypeError):
            log.exception("horse.unreadable", extra={"child_pid": self.pid})
        code = self._reap()
        with self._lock:
            if self._in_flight is not None:
                self._answer(-code if code < 0 else code << 8)

    def _reap(self) -> int:
        try:
            return self._process.wait(CLOSE_PATIENCE_S)
        except subprocess.TimeoutExpired:  # it no longer speaks to us, so it must go
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            return self._process.wait()

    def _note(self, reply: Reply) -> None:
        self._last_sign_of_life = time.monotonic()
        with self._lock:
            self._has_spoken = True
            self._is_taken |= reply.execution_id == self._in_flight
            self.is_retiring |= reply.retiring
            # An answer to an execution that is over, or only a sign of life, ends no wait.
            if reply.execution_id == self._in_flight and reply.code is not None:
                self._answer(FAILED_STATUS if reply.code else 0)

    def _answer(self, status: int) -> None:
        self._in_flight, self._status = None, status
        os.write(self._wake, b"!")
