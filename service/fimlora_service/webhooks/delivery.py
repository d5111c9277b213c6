"""Deliver webhooks: signed, only to hosts the operator allows, again until it works.

Signed as Standard Webhooks 1.0 has it: HMAC-SHA256 over id, timestamp and body. No redirect is
followed, no proxy of the environment used, and of an answer only the status is read.
"""

import base64
import hashlib
import hmac
import logging
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from prometheus_client import Counter

from fimlora_contract.webhooks import origin_of
from fimlora_jobs.outbox import Notice, Outbox, event_of
from fimlora_jobs.reader import JobMissing
from fimlora_service.errors import WebhookNotAllowed

# Seconds before each further try; after the last one the notice is given up.
PAUSES_S = (5, 30, 120, 600, 1800, 7200, 21_600)
JITTER = 0.2
TIMEOUT_S = 10.0
N_AT_ONCE = 4
GONE = 410
logger = logging.getLogger(__name__)


def check_webhook(url: str, *, allowed: frozenset[str]) -> None:
    """Refuse an address whose host the operator has not allowed.

    Raises:
        WebhookNotAllowed: The message says what is allowed.
    """
    if origin_of(url) not in allowed:
        what = f"allowed are {sorted(allowed)}" if allowed else "this service calls none"
        raise WebhookNotAllowed(f"webhook: scheme, host and port must be allowed; {what}")


class WebhookSender:
    """Delivers what is due.

    Args:
        outbox: Where notices lie.
        allowed: Origins that may be called.
        key: What deliveries are signed with; ``None`` for no signature.
        tries: Counts deliveries by their outcome.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        outbox: Outbox,
        *,
        allowed: frozenset[str],
        key: bytes | None,
        tries: Counter,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._outbox = outbox
        self._allowed = allowed
        self._key = key
        self._tries = tries
        self._clock = clock

    def deliver_due(self) -> None:
        """Try everything that is due now, a few at a time."""
        with ThreadPoolExecutor(N_AT_ONCE, thread_name_prefix="webhook") as pool:
            while notices := self._outbox.take(at_most=N_AT_ONCE):
                list(pool.map(self._try, notices))

    def _try(self, notice: Notice) -> None:
        outcome = self._send(notice)
        if outcome == "retry":
            tries = self._outbox.count_try(notice)
            if tries <= len(PAUSES_S):
                pause = PAUSES_S[tries - 1] * random.uniform(1 - JITTER, 1 + JITTER)
                self._outbox.put_off(notice, seconds=pause)
            else:
                outcome = "given_up"
        if outcome != "retry":
            self._outbox.settle(notice)
        self._tries.labels(outcome).inc()
        fields = {"job_id": notice.job_id, "origin": origin_of(notice.url), "outcome": outcome}
        logger.info("webhook.tried", extra=fields)

    def _send(self, notice: Notice) -> str:
        """One try; answers ``delivered``, ``retry``, ``refused`` or ``dropped``."""
        import httpx2  # not needed by a service that calls nobody

        if origin_of(notice.url) not in self._allowed:
            return "dropped"  # allowed once, and not any more
        try:
            body = event_of(self._outbox.store.shown(notice.job_id)).model_dump_json().encode()
        except JobMissing:
            return "dropped"
        headers = sign(notice.id, body, key=self._key, now=int(self._clock()))
        try:
            with (
                httpx2.Client(timeout=TIMEOUT_S, trust_env=False) as client,
                client.stream("POST", notice.url, content=body, headers=headers) as answer,
            ):
                status = answer.status_code
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
            fields = {"job_id": notice.job_id, "error": type(error).__name__}
            logger.warning("webhook.unreachable", extra=fields)
            return "retry"
        if status == GONE:
            return "refused"  # the receiver wants no more
        return "delivered" if 200 <= status < 300 else "retry"


def sign(id_: str, body: bytes, *, key: bytes | None, now: int) -> dict[str, str]:
    """Headers of a webhook."""
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "fimlora-webhook",
        "webhook-id": id_,
        "webhook-timestamp": str(now),
    }
    if key is not None:
        signed = hmac.new(key, f"{id_}.{now}.".encode() + body, hashlib.sha256).digest()
        headers["webhook-signature"] = f"v1,{base64.b64encode(signed).decode()}"
    return headers
