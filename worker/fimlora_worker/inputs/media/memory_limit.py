"""A limit on what a stranger's processor may ask for while it runs: a refusal, not a dead worker."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STATUS = Path("/proc/self/statm")
DATA = 5  # its field of pages that may be written, and are this process's alone
# The pools that a first call starts have as many threads as there are processors, each a stack.
STACKS_BYTES = 2 * (8 << 20)


@contextmanager
def at_most_more(n_bytes: int) -> Iterator[None]:
    """Let this process ask for so many more bytes that it may write, and restore its limit.

    Stacks of threads come on top. Addresses that are only reserved are free, as the allocator
    reserves 64 MiB of them for each thread, and a driver many GiB. Where the system does not say
    how much there is (no ``/proc``, or zeros in it), nothing is limited.
    """
    held = _n_held()
    if not held:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = held + n_bytes + STACKS_BYTES * (os.cpu_count() or 1)
    finite = [limit for limit in (wanted, soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(finite), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _n_held() -> int:
    if not STATUS.is_file():
        return 0
    return int(STATUS.read_text(encoding="ascii").split()[DATA]) * resource.getpagesize()
