"""How many requests of one client may wait at once: long polls and streams of events."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from fastapi import Request

from fimlora_service.http.dependencies import part


class WaitingRoom:
    """Counts who waits.

    Args:
        places: How many requests of one client may wait.
    """

    def __init__(self, places: int) -> None:
        self.places = places
        self._taken: Counter[str] = Counter()

    def has_place(self, client: str) -> bool:
        """Whether one more request of a client may wait."""
        return self._taken[client] < self.places

    @contextmanager
    def place(self, client: str) -> Iterator[bool]:
        """Take a place inside the block; says whether there was one."""
        if not self.has_place(client):
            yield False
            return
        self._taken[client] += 1
        try:
            yield True
        finally:
            self._taken[client] -= 1
            if not self._taken[client]:
                del self._taken[client]


def client_of(request: Request) -> str:
    """Who asks: the tenant of a key, without keys the address."""
    principal = getattr(request.state, "principal", None)
    if principal and principal.key_id:
        return f"tenant {principal.tenant}"
    return request.client.host if request.client else ""


WaitingRoomDep = Annotated[WaitingRoom, part("waiting_room")]
