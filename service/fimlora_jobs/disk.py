"""The disk: bringing files there for good, and telling when it takes none for now.

Who may not write, and for whom there is no space, is told so by a number, whichever library it came
through. None of these is an error of a job: they go away when the operator has seen to it.
"""

import errno
import os
import re
from pathlib import Path

REFUSED = frozenset({
    errno.EPERM, errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO,
})  # fmt: skip
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
NETWORK = frozenset({"httpcore", "httpcore2", "httpx", "httpx2", "requests", "urllib3"})
# How libraries in Rust, safetensors and tokenizers among them, tell an error of the system's.
RUST = re.compile(r"\(os error (\d+)\)")


def refusal_in(error: BaseException) -> int | None:
    """The number by which the system refused the disk, if that is what an error comes from.

    What an error says to have been caused by counts, what it was merely raised beside does not, nor
    what a network refused.
    """
    seen: BaseException | None = error
    while seen is not None and not is_networks(seen):
        number = seen.errno if isinstance(seen, OSError) else _rust_errno(seen)
        if number in REFUSED:
            return number
        seen = seen.__cause__
    return None


def is_networks(error: BaseException) -> bool:
    """Whether an error is one of a library that speaks over a network."""
    return type(error).__module__.partition(".")[0] in NETWORK


def describe_refusal(number: int) -> str:
    """What the disk lacks, in words that name no path."""
    if number in FULL:
        return "the disk is full"
    return f"the disk cannot be used: {os.strerror(number)}"


def sync(path: Path) -> None:
    """Bring a file's content, or the names in a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Bring a folder without folders in it to disk: its files, then their names."""
    for path in folder.iterdir():
        sync(path)
    sync(folder)


def _rust_errno(error: BaseException) -> int | None:
    found = RUST.search(str(error))
    return int(found[1]) if found else None
