"""The only file that talks RQ: hand an attempt to the workers, and look at the queue.

Never asks a registry: RQ's registries clean up as a side effect of counting, in the
process that counts, without a lock.
"""

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


class RqTransport:
    """The queue as the contract's reaper wants it.

    Args:
        redis: A client of its own: RQ changes the socket timeout of the one it is given.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._queue = Queue(QUEUE_NAME, connection=redis, serializer="json")

    def enqueue(self, job_id: str, attempt: int, *, at_front: bool = False) -> None:
        """Queue one attempt; queueing it again changes nothing."""
        try:
            self._queue.enqueue(
                RUN_CALIBRATION,
                args=(job_id, attempt),
                job_id=rq_job_id(job_id, attempt),
                job_timeout=JOB_TIMEOUT_S,
                at_front=at_front,
                **ENQUEUE_OPTIONS,
            )
        except DuplicateJobError:
            return

    def waiting(self) -> set[tuple[str, int]]:
        """Job ids and attempts in the list that workers pop from."""
        return attempts_in(self._redis.lrange(self._queue.key, 0, -1))

    def depth(self) -> int:
        """How many attempts wait."""
        return int(self._redis.llen(self._queue.key))
