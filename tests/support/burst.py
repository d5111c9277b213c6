"""Run what is queued in this process: a worker that is gone before anybody could command it."""

from redis import Redis
from rq import SimpleWorker

from fimlora_jobs.attempts import QUEUE_NAME


class DeafWorker(SimpleWorker):  # type: ignore[misc]
    """Listens to no commands: ending the thread that does takes up to a second each time."""

    def subscribe(self) -> None:
        """Listen to nothing."""

    def unsubscribe(self) -> None:
        """Nothing was listened to."""


def run_what_is_queued(redis: Redis, *, max_jobs: int | None = None) -> None:
    """Run jobs until none is left, with the real engine."""
    worker = DeafWorker([QUEUE_NAME], connection=redis, serializer="json")
    worker.work(burst=True, max_jobs=max_jobs)
