"""What the client needs of the world, so that tests can give it another one."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fimlora_client.calls import Answer, Call
from fimlora_client.retries import RetryPolicy, retry_after_s


def _ignore(_call: Call, _answer: Answer) -> None:
    """Nobody wants to know."""


def _ignore_pause(_answer: Answer, _seconds: float) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True, slots=True)
class Context:
    """Policy, clock and randomness of a client.

    Attributes:
        policy: When and how long to retry.
        random: A number in [0, 1).
        clock: Monotonic seconds, for deadlines.
        unix_time: Wall clock seconds, for dates in ``Retry-After``.
        on_answer: Told of every exchange, for those who want to watch.
        on_pause: Told what was refused for now, and for how many seconds it is waited.
    """

    policy: RetryPolicy = field(default_factory=RetryPolicy)
    random: Callable[[], float] = random.random
    clock: Callable[[], float] = time.monotonic
    unix_time: Callable[[], float] = time.time
    on_answer: Callable[[Call, Answer], None] = _ignore
    on_pause: Callable[[Answer, float], None] = _ignore_pause

    def hint(self, answer: Answer) -> float | None:
        """Seconds the service asks us to stay away."""
        return retry_after_s(answer.headers.get("retry-after"), now=self.unix_time())

    def pause_asked_for(self, answer: Answer) -> float:
        """Seconds to stay away after a refusal, some by chance: not all come back at once."""
        policy = self.policy
        return policy.pause(policy.max_retries, hint_s=self.hint(answer), random=self.random())
