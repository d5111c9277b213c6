"""What the hub may answer: bounded in size and time, from where it was asked, and sound.

The hub is another's machine. Its library believes it: it would read an answer without end, unpack
one of a kilobyte to a gigabyte, follow it to an address of ours, and fail in its own code on a
field of another type.
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

import httpx2
from huggingface_hub import DatasetInfo, ModelInfo, set_client_factory
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from huggingface_hub.utils._http import default_client_factory

from fimlora_service.addresses import address_of
from fimlora_service.errors import HubUnreachable

MAX_ANSWER = 96 << 20  # the largest file that is looked at has 64 MiB
MAX_SECONDS = 120.0
MAX_SIZE = 1 << 60
COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
RANGE = re.compile(r"bytes=([0-9]{1,18})-([0-9]{1,18})")


class Bounded(httpx2.SyncByteStream):
    """The body of an answer, given up when it is too large or takes too long.

    Args:
        body: What comes.
        max_bytes: How much is taken.
        max_seconds: For how long it is waited.
    """

    def __init__(
        self, body: httpx2.SyncByteStream, *, max_bytes: int, max_seconds: float
    ) -> None:
        self._body = body
        self._max_bytes = max_bytes
        self._until = time.monotonic() + max_seconds

    def __iter__(self) -> Iterator[bytes]:
        received = 0
        for chunk in self._body:
            received += len(chunk)
            if received > self._max_bytes:
                raise httpx2.DecodingError(f"the answer has over {self._max_bytes} bytes")
            if time.monotonic() > self._until:
                raise httpx2.DecodingError("the answer takes too long")
            yield chunk

    def close(self) -> None:
        """Let the connection go."""
        self._body.close()


def bound_answers() -> None:
    """Have the hub's library take no more than this from any hub."""
    set_client_factory(bounded_client)


def bounded_client() -> httpx2.Client:
    """The library's own client, with our eyes on what it sends and gets."""
    client = default_client_factory()
    hooks = client.event_hooks
    client.event_hooks = {
        "request": [*hooks["request"], ask_plainly],
        "response": [*hooks["response"], check_answer],
    }
    return client


def ask_plainly(request: httpx2.Request) -> None:
    """Ask for answers as they are: only of those is the size known while they come."""
    request.headers["Accept-Encoding"] = "identity"


def check_answer(answer: httpx2.Response) -> None:
    """Look at the head of an answer, and bound its body.

    Raises:
        HTTPError: It is compressed, or leads where the hub has no business.
    """
    if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise httpx2.DecodingError("the answer is compressed, which was not asked for")
    if answer.has_redirect_location:
        check_redirect(answer.request.url, answer.headers["Location"])
    asked = RANGE.fullmatch(answer.request.headers.get("Range", ""))
    limit = int(asked[2]) - int(asked[1]) + 1 if asked else MAX_ANSWER
    assert isinstance(answer.stream, httpx2.SyncByteStream)
    answer.stream = Bounded(
        answer.stream, max_bytes=min(limit, MAX_ANSWER), max_seconds=MAX_SECONDS
    )


def check_redirect(asked: httpx2.URL, location: str) -> None:
    """Refuse to be led to this machine or its network from outside, or out of TLS.

    Raises:
        HTTPError: It does.
    """
    try:
        target = asked.join(location)
    except httpx2.InvalidURL as error:
        raise httpx2.UnsupportedProtocol("the hub redirects to what is no address") from error
    if target.scheme not in {"http", "https"} or (asked.scheme, target.scheme) == (
        "https",
        "http",
    ):
        raise httpx2.UnsupportedProtocol(f"the hub redirects to scheme {target.scheme!r}")
    if is_near(target.host) and not is_near(asked.host):
        raise httpx2.UnsupportedProtocol("the hub redirects to an address that is not public")


def is_near(host: str) -> bool:
    """Whether a host is an address of this machine or its network, by its name alone."""
    address = address_of(host)
    return host == "localhost" if address is None else not address.is_global


@contextmanager
def readable(where: str) -> Iterator[None]:
    """Refuse an answer that the hub's library cannot make sense of.

    Raises:
        HubUnreachable: It cannot; what it does understand goes through.
    """
    try:
        yield
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError):
        raise
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise HubUnreachable(f"the hub's answer for {where} cannot be read") from error
    except OSError as error:
        if error.errno is not None:
            raise  # of this machine: its disk is full, say
        raise HubUnreachable(f"the hub's answer for {where} cannot be read") from error


def check_info(info: ModelInfo | DatasetInfo, *, where: str) -> None:
    """Refuse a description of a repository that cannot be one.

    Raises:
        HubUnreachable: Its commit, or a file's name or size, is none.
    """
    files = info.siblings or []
    is_sound = (
        isinstance(info.sha, str)
        and COMMIT.fullmatch(info.sha) is not None
        and all(is_inside(f.rfilename) and is_size(f.size) for f in files)
    )
    if not is_sound:
        raise HubUnreachable(f"the hub's answer for {where} cannot be read")


def is_inside(name: object) -> bool:
    """Whether this may be the path of a file in a repository."""
    if not isinstance(name, str) or "\\" in name or "\0" in name:
        return False
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def is_size(size: object) -> bool:
    """Whether this may be the size of a file; of some it is not told."""
    return size is None or (
        isinstance(size, int) and not isinstance(size, bool) and 0 <= size < MAX_SIZE
    )
