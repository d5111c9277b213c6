"""What is still to be read of an answer when the next request is waited for."""

import asyncio
from time import monotonic

from fimlora_service.http.connections import Connection, Connections

PATIENCE_S = 0.1
N_BYTES = 1_000_000


class SlowLine(asyncio.Transport):
    """Delivers steadily for a while, and then no more.

    Attributes:
        aborted_s: After how many seconds it was cut; ``None`` while it was not.
    """

    aborted_s: float | None = None

    def __init__(self, *, works_for_s: float) -> None:
        super().__init__()
        self._began, self._works_for_s = monotonic(), works_for_s

    def get_write_buffer_size(self) -> int:
        """Less with every moment."""
        worked_s = min(monotonic() - self._began, self._works_for_s)
        return N_BYTES - int(worked_s * 100_000)

    def is_closing(self) -> bool:
        """Nobody has closed it."""
        return False

    def abort(self) -> None:
        """It is cut."""
        self.aborted_s = monotonic() - self._began


def test_the_last_bytes_are_waited_for_while_they_are_read():
    """The application is done with them, and the deadline of the next head runs already."""
    works_for_s = 5 * PATIENCE_S

    async def answer() -> SlowLine:
        connection = Connection(Connections(at_most=1, patience_s=PATIENCE_S))
        connection.inner = asyncio.Protocol()
        line = SlowLine(works_for_s=works_for_s)
        connection.connection_made(line)
        with connection.answering():
            pass
        async with asyncio.timeout(20):
            while line.aborted_s is None:
                await asyncio.sleep(PATIENCE_S / 10)
        return line

    assert asyncio.run(answer()).aborted_s >= works_for_s
