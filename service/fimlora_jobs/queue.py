"""The queue, for both sides: hand an attempt to the workers, and look at what waits.

Never asks a registry: RQ's registries clean up as a side effect of counting, in the
process that counts, without a lock.
"""

from contextlib import suppress

from redis import Redis
from rq import Queue
from rq.exceptions import DuplicateJobError

from fimlora_jobs.answers import text_of
from fimlora_jobs.attempts import (
    ENQUEUE_OPTIONS,
    HAND_OPTIONS,
    JOB_TIMEOUT_S,
    LEND_HAND,
    QUEUE_NAME,
    RUN_ATTEMPT,
    attempts_in,
    is_hand,
    job_id_of,
    new_hand_id,
    rq_job_id,
)
from fimlora_jobs.scripts import run_script

SERIALIZER = "json"  # never pickle: what lies in Redis is data
LAST_HIGH_KEY = "fimlora:last_high"


class RqTransport:
    """The queue as service, worker and reaper see it.

    There is one queue: with two, RQ would lose an attempt whose worker dies while it takes it.
    Its front belongs to attempts of high priority, in the order they came.

    Args:
        redis: A client of its own: RQ changes the socket timeout of the one it is given.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._queue = Queue(QUEUE_NAME, connection=redis, serializer=SERIALIZER)

    def enqueue(self, job_id: str, attempt: int, *, at_front: bool = False) -> None:
        """Queue one attempt; queueing it again changes nothing."""
        rq_id = rq_job_id(job_id, attempt)
        with suppress(DuplicateJobError):
            self._queue.enqueue(
                RUN_ATTEMPT,
                args=(job_id, attempt),
                job_id=rq_id,
                description=rq_id,
                job_timeout=JOB_TIMEOUT_S,
                at_front=at_front,
                **ENQUEUE_OPTIONS,
            )

    def enqueue_hand(self, job_id: str) -> str:
        """Ask some worker to train a run of an evaluation, behind all that wait; answers its id."""
        rq_id = new_hand_id(job_id)
        self._queue.enqueue(
            LEND_HAND,
            args=(job_id, rq_id),
            job_id=rq_id,
            description=rq_id,
            job_timeout=JOB_TIMEOUT_S,
            **HAND_OPTIONS,
        )
        return rq_id

    def waiting_hands(self, job_id: str) -> int:
        """How many hands for an evaluation wait to be taken."""
        ids = map(text_of, self._redis.lrange(self._queue.key, 0, -1))
        return sum(is_hand(rq_id) and job_id_of(rq_id) == job_id for rq_id in ids)

    def promote(self, job_id: str, attempt: int) -> None:
        """Let a waiting attempt go before all that are not of high priority."""
        rq_id = rq_job_id(job_id, attempt)
        run_script(self._redis, "queue_promote", keys=self._high_keys(), args=[rq_id])

    def n_high(self) -> int:
        """How many attempts wait up to the last one of high priority."""
        return int(run_script(self._redis, "queue_n_high", keys=self._high_keys()))

    def waiting(self) -> set[tuple[str, int]]:
        """Job ids and attempts in the list that workers pop from."""
        return attempts_in(self._redis.lrange(self._queue.key, 0, -1))

    def depth(self) -> int:
        """How many attempts wait."""
        return int(self._redis.llen(self._queue.key))

    def _high_keys(self) -> list[str]:
        return [self._queue.key, LAST_HIGH_KEY]
