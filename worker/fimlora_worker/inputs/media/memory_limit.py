"""A limit on what a stranger's processor may ask for while it runs: a refusal, not a dead worker."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STATUS = Path("/proc/self/statm")


@contextmanager
def at_most_more(n_bytes: int) -> Iterator[None]:
    """Let this process ask for so many more bytes of address space, and restore its limit.

    Where the system does not say how much it has (no ``/proc``), nothing is limited.
    """
    if not STATUS.is_file():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(STATUS.read_text(encoding="ascii").split()[0])
    wanted = pages * resource.getpagesize() + n_bytes
    finite = [limit for limit in (wanted, soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(finite), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
