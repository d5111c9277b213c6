"""How attempts are queued: one RQ job per attempt, by dotted name and JSON."""

from contextlib import suppress

from redis import Redis
from rq import Queue
from rq.exceptions import DuplicateJobError

from fimlora_contract.tasks import (
    ENQUEUE_OPTIONS,
    JOB_TIMEOUT_S,
    QUEUE_NAME,
    RUN_CALIBRATION,
    attempts_in,
    rq_job_id,
)

SERIALIZER = "json"


class RqTransport:
    """The queue as the reaper needs it."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._queue = Queue(QUEUE_NAME, connection=redis, serializer=SERIALIZER)

    def enqueue(self, job_id: str, attempt: int, *, at_front: bool = False) -> None:
        """Queue one attempt; queueing it again changes nothing."""
        rq_id = rq_job_id(job_id, attempt)
        with suppress(DuplicateJobError):
            self._queue.enqueue(
                RUN_CALIBRATION,
                args=(job_id, attempt),
                job_id=rq_id,
                description=rq_id,
                job_timeout=JOB_TIMEOUT_S,
                at_front=at_front,
                **ENQUEUE_OPTIONS,
            )

    def waiting(self) -> set[tuple[str, int]]:
        """Job ids and attempts in the list that workers pop from."""
        return attempts_in(self._redis.lrange(self._queue.key, 0, -1))
