"""Deliver webhooks: who is due is called, a few per receiver at a time, again until it works.

All calls run on one event loop in the thread that delivers. While some receivers are slow, what
is due for others is taken and sent; the outbox passes over those that are being called enough.
"""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from threading import Event
from typing import Literal, NamedTuple

import prometheus_client
from redis.exceptions import RedisError

from fimlora_contract.webhooks import WebhookTry, origin_of
from fimlora_jobs.outbox import Notice, Outbox, event_of
from fimlora_jobs.reader import JobMissing
from fimlora_service.errors import WebhookNotAllowed
from fimlora_service.webhooks.posting import NoAnswer, Poster
from fimlora_service.webhooks.signing import sign

# Seconds before each further try; after the last one the notice is given up.
PAUSES_S = (5, 30, 120, 600, 1800, 7200, 21_600)
JITTER = 0.2
N_AT_ONCE = 64
PER_ORIGIN = 4
LOOK_S = 0.5  # between looks at the outbox, and whether to stop, while calls are under way
GONE = 410
Outcome = Literal["delivered", "retry", "refused", "dropped", "given_up"]
logger = logging.getLogger(__name__)


class Answer(NamedTuple):
    """What a try came to."""

    outcome: Outcome
    status: int | None = None
    reason: str | None = None


def check_webhook(url: str, *, allowed: frozenset[str]) -> None:
    """Refuse an address whose host the operator has not allowed.

    Raises:
        WebhookNotAllowed: The message says what is allowed.
    """
    if origin_of(url) not in allowed:
        what = f"allowed are {sorted(allowed)}" if allowed else "this service calls none"
        raise WebhookNotAllowed(f"webhook: scheme, host and port must be allowed; {what}")


def at_once() -> "Future[None]":
    """Nothing is waited for."""
    done: Future[None] = Future()
    done.set_result(None)
    return done


class WebhookSender:
    """Delivers what is due.

    Args:
        outbox: Where notices lie.
        poster: Calls receivers.
        keys: What deliveries are signed with, one signature each; none for no signature.
        tries: Counts deliveries by their outcome.
        settled: Tells when what is on record is on disk: before that no end is told.
        per_origin: How many calls of one receiver are under way at most.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        outbox: Outbox,
        *,
        poster: Poster,
        keys: Sequence[bytes],
        tries: prometheus_client.Counter,
        settled: Callable[[], "Future[None]"] = at_once,
        per_origin: int = PER_ORIGIN,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._outbox = outbox
        self._poster = poster
        self._keys = keys
        self._tries = tries
        self._settled = settled
        self._per_origin = per_origin
        self._clock = clock
        self._stopping = Event()

    def deliver_due(self) -> None:
        """Call whoever is due, and who becomes due meanwhile, until nobody is."""
        if first := self._take(Counter()):
            asyncio.run(self._deliver(first))

    def close(self) -> None:
        """Give up the calls that are under way; they are due again at once."""
        self._stopping.set()

    async def _deliver(self, notices: list[Notice]) -> None:
        calling: dict[asyncio.Task[None], str] = {}
        try:
            while (notices or calling) and not self._stopping.is_set():
                for notice in notices:
                    task = asyncio.create_task(self._try(notice))
                    calling[task] = origin_of(notice.url) or ""
                done, _ = await asyncio.wait(
                    calling, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    del calling[task]
                    if error := task.exception():  # the others have their own
                        logger.error("webhooks.failed", exc_info=error)
                notices = self._take(Counter(calling.values()))
        finally:
            for task in calling:
                task.cancel()
            await asyncio.gather(*calling, return_exceptions=True)

    def _take(self, calling: Counter[str]) -> list[Notice]:
        if self._stopping.is_set():
            return []
        free = N_AT_ONCE - calling.total()
        return self._outbox.take(at_most=free, per_origin=self._per_origin, calling=calling)

    async def _try(self, notice: Notice) -> None:
        began = time.monotonic()
        try:
            answer = await self._call(notice)
        except asyncio.CancelledError:
            self._outbox.give_back(notice)
            raise
        tried = self._tried(notice, answer, duration_s=time.monotonic() - began)
        self._outbox.note(notice, tried)
        self._tries.labels(tried.outcome).inc()
        fields = {"job_id": notice.job_id, **tried.model_dump(exclude={"at", "next_try_at"})}
        logger.info("webhook.tried", extra=fields)

    async def _call(self, notice: Notice) -> Answer:
        if origin_of(notice.url) not in self._poster.receivers.origins:
            return Answer("dropped", reason="the operator does not allow the host")
        try:
            body = event_of(self._outbox.store.shown(notice.job_id)).model_dump_json().encode()
        except JobMissing:
            return Answer("dropped", reason="the job was deleted")
        try:
            await asyncio.wrap_future(self._settled())
        except (RedisError, OSError):
            return Answer("retry", reason="the end of the job is not on disk yet")
        headers = sign(notice.id, body, keys=self._keys, now=int(self._clock()))
        try:
            status = await self._poster.post(notice.url, body, headers)
        except NoAnswer as error:
            return Answer("retry", reason=str(error))
        if status == GONE:
            return Answer("refused", status)  # the receiver wants no more
        return Answer("delivered" if 200 <= status < 300 else "retry", status)

    def _tried(self, notice: Notice, answer: Answer, *, duration_s: float) -> WebhookTry:
        """What goes on record of a try, with when the next one is due."""
        number = self._outbox.failed_tries(notice) + 1
        outcome, next_try_at, now = answer.outcome, None, datetime.now(UTC)
        if outcome == "retry" and number > len(PAUSES_S):
            outcome = "given_up"
        elif outcome == "retry":
            pause_s = PAUSES_S[number - 1] * random.uniform(1 - JITTER, 1 + JITTER)
            next_try_at = now + timedelta(seconds=pause_s)
        return WebhookTry(
            id=notice.id,
            origin=origin_of(notice.url) or "",
            at=now,
            attempt=number,
            outcome=outcome,
            status=answer.status,
            reason=answer.reason,
            duration_s=round(duration_s, 3),
            next_try_at=next_try_at,
        )
