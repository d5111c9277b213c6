"""Says in the log when the server of the jobs cannot be reached, and when it can again."""

import logging
import time
from collections.abc import Callable
from contextlib import closing

from redis.exceptions import RedisError

from fimlora_contract.environment import hide_password
from fimlora_jobs.connection import impatient_redis

NEXT_STEP = "start that server, or correct REDIS_URL; this process goes on by itself then"
SAY_AGAIN_S = 30.0
log = logging.getLogger(__name__)


class StoreWatch:
    """Looks whether the server answers; a line when that changes, and now and then while away.

    Args:
        url: Where the server is.
        clock: Seconds of a monotonic clock.
    """

    def __init__(self, url: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._clock = clock
        self._away_since: float | None = None
        self._said = float("-inf")

    def look(self) -> bool:
        """Whether it answers now; at most three seconds pass."""
        try:
            with closing(impatient_redis(self._url)) as redis:
                redis.ping()
        except RedisError as error:
            self._note_away(error)
            return False
        if self._away_since is not None:
            away_s = round(self._clock() - self._away_since, 1)
            log.info("store.reached", extra={"address": self._address, "away_s": away_s})
            self._away_since, self._said = None, float("-inf")
        return True

    def wait(
        self, *, pause_s: float = 0.5, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """Wait until it answers, for as long as that takes."""
        while not self.look():
            sleep(pause_s)

    @property
    def _address(self) -> str:
        return hide_password(self._url)

    def _note_away(self, error: RedisError) -> None:
        now = self._clock()
        self._away_since = now if self._away_since is None else self._away_since
        if now - self._said < SAY_AGAIN_S:
            return
        self._said = now
        fields = {
            "address": self._address,
            "error": f"{type(error).__name__}: {error}",
            "away_s": round(now - self._away_since, 1),
            "next_step": NEXT_STEP,
        }
        log.warning("store.unreachable", extra=fields)
