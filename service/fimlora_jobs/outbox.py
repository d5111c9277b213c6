"""The outbox: which addresses are still to be told of a job's end.

An entry is written by the script that ends the job, in the same step. Whoever delivers takes
an entry for a while instead of removing it, so that one whose process dies is delivered by the
next.
"""

import hashlib
from dataclasses import dataclass

from fimlora_contract.webhooks import WebhookEvent, WebhookJob
from fimlora_jobs.answers import text_of
from fimlora_jobs.reader import JobMissing
from fimlora_jobs.record import JobRecord
from fimlora_jobs.scripts import run_script
from fimlora_jobs.store import JobStore

TAKEN_S = 60.0
ADDRESSES_KEPT_S = 90 * 24 * 3600


def event_of(record: JobRecord) -> WebhookEvent:
    """What is told of a job that has ended."""
    job = record.to_job()
    assert job.finished_at is not None
    told = job.model_dump(include=set(WebhookJob.model_fields))
    digest = job.result.digest if job.result else None
    return WebhookEvent.model_validate(
        {
            "type": f"job.{job.status}",
            "timestamp": job.finished_at,
            "data": told | {"digest": digest},
        }
    )


@dataclass(frozen=True, slots=True)
class Notice:
    """An entry of the outbox: one end of one job for one address."""

    job_id: str
    url: str

    @property
    def entry(self) -> str:
        """As it lies in Redis."""
        return f"{self.job_id} {self.url}"

    @property
    def id(self) -> str:
        """The same for every try, so that a receiver can tell a repetition."""
        return f"msg_{hashlib.sha256(self.entry.encode()).hexdigest()[:32]}"


@dataclass(frozen=True, slots=True)
class Outbox:
    """Who is still to be told of what, in the same Redis as the jobs."""

    store: JobStore

    def add(self, job_id: str, url: str) -> None:
        """Have an address told of a job's end; adding it again changes nothing.

        Raises:
            JobMissing: There is no such job.
        """
        keys = [self.store.key("job", job_id), self._addresses(job_id), self._key()]
        given: list[str | int] = [job_id, url, ADDRESSES_KEPT_S]
        if not run_script(self.store.redis, "outbox_add", keys=keys, args=given):
            raise JobMissing(f"no job {job_id!r}")

    def addresses(self, job_id: str) -> list[str]:
        """The addresses that are, or were, to be told of a job's end."""
        return sorted(map(text_of, self.store.redis.smembers(self._addresses(job_id))))

    def take(self, *, at_most: int) -> list[Notice]:
        """Take what is due; it is due again in a minute unless it is settled by then."""
        now = self.store.now_ms()
        given = [now, now + int(TAKEN_S * 1000), at_most]
        entries = run_script(self.store.redis, "outbox_take", keys=[self._key()], args=given)
        return [Notice(*text_of(entry).split(" ", 1)) for entry in entries]

    def put_off(self, notice: Notice, *, seconds: float) -> None:
        """Let a notice be due again after a while."""
        due = self.store.now_ms() + round(seconds * 1000)
        self.store.redis.zadd(self._key(), {notice.entry: due}, xx=True)

    def count_try(self, notice: Notice) -> int:
        """Note a try that failed; answers how many have."""
        return int(self.store.redis.hincrby(self._tries(), notice.entry, 1))

    def settle(self, notice: Notice) -> None:
        """Strike a notice: it is delivered, or given up."""
        self.store.redis.zrem(self._key(), notice.entry)
        self.store.redis.hdel(self._tries(), notice.entry)

    def waiting(self) -> int:
        """How many notices are not settled."""
        return int(self.store.redis.zcard(self._key()))

    def _key(self) -> str:
        return self.store.key("outbox")

    def _tries(self) -> str:
        return self.store.key("outbox_tries")

    def _addresses(self, job_id: str) -> str:
        return self.store.key("webhooks", job_id)
