"""How often a wait asks where a job stands."""

from collections.abc import Callable

from fimlora_contract.jobs import Job

FIRST_POLL_S = 0.1
SLOWEST_POLL_S = 2.0
OnProgress = Callable[[Job], object]


class Pace:
    """The pauses of one wait.

    They are ``poll_every`` if given; else they grow from a tenth of a second to what the
    service suggests, so that a short job is answered at once and a long one costs little.

    Args:
        poll_every: The caller's own pace, in seconds.
    """

    def __init__(self, poll_every: float | None) -> None:
        self._given = poll_every
        self._pause = FIRST_POLL_S

    def next(self, hint_s: float | None) -> float:
        """Seconds before the next poll; ``hint_s`` is what the service suggests."""
        if self._given:
            return self._given
        slowest = min(hint_s or SLOWEST_POLL_S, SLOWEST_POLL_S)
        pause, self._pause = min(self._pause, slowest), self._pause * 1.5
        return pause
