"""When to try again, and how long to wait before.

Pure functions of an answer, a clock reading and a random number. The service's own
``Retry-After`` wins over our guess, up to a cap, because it knows and we do not.
"""

import json
import math
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

from fimlora_client.calls import Answer

RETRYABLE_STATUSES = frozenset({408, 429})


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently to try again.

    Attributes:
        max_retries: Tries after the first one.
        first_delay_s: Upper end of the first random pause; each later one doubles it.
        max_delay_s: No pause of ours is longer.
        max_retry_after_s: A longer ``Retry-After`` is cut to this.
        max_in_flight_s: For how long an equal request that is being handled is waited for,
            besides the retries: longer than the service holds on to one whose process died.
    """

    max_retries: int = 4
    first_delay_s: float = 0.5
    max_delay_s: float = 8.0
    max_retry_after_s: float = 60.0
    max_in_flight_s: float = 60.0

    def pause(self, retry: int, *, hint_s: float | None, random: float) -> float:
        """Seconds before the retry with this number (from 0); ``random`` is in [0, 1)."""
        jitter = 0.5 + random / 2
        if hint_s is not None:
            # Only ever later than asked, by up to a tenth: a herd must not return at once.
            return min(hint_s, self.max_retry_after_s) * (1 + random / 10)
        return min(self.first_delay_s * 2.0**retry, self.max_delay_s) * jitter


def is_retryable(answer: Answer) -> bool:
    """Whether the same request may succeed later without anybody changing anything."""
    if answer.status == 429 and _code(answer) == "quota_exceeded":
        return "retry-after" in answer.headers  # a quota of bytes does not pass by waiting
    if answer.status in RETRYABLE_STATUSES or answer.status >= 500:
        return True
    return is_in_flight(answer)


def is_in_flight(answer: Answer) -> bool:
    """Whether an equal request under the same key is being handled right now."""
    return answer.status == 409 and _code(answer) == "idempotency_in_flight"


def is_rate_limited(answer: Answer) -> bool:
    """Whether the key has asked too often, which passes by waiting."""
    return answer.status == 429 and _code(answer) == "rate_limited"


def retry_after_s(value: str | None, *, now: float) -> float | None:
    """Seconds that a ``Retry-After`` header asks for; ``None`` when it says nothing usable.

    Args:
        value: Seconds or an HTTP date.
        now: Unix time, to turn a date into seconds.
    """
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = _seconds_until(value, now=now)
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _seconds_until(value: str, *, now: float) -> float:
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return math.nan
    aware = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, aware.timestamp() - now)


def _code(answer: Answer) -> str | None:
    try:
        body = json.loads(answer.content)
    except ValueError:
        return None
    return body.get("code") if isinstance(body, dict) else None
