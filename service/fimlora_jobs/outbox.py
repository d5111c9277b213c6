"""The outbox: which addresses are still to be told of a job's end.

An entry is written by the script that ends the job, in the same step. Whoever delivers takes
an entry for a while instead of removing it, so that one whose process dies is delivered by the
next.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from fimlora_contract.webhooks import WebhookEvent, WebhookJob, WebhookTry
from fimlora_jobs.answers import text_of
from fimlora_jobs.reader import JobMissing
from fimlora_jobs.record import JobRecord
from fimlora_jobs.scripts import run_script
from fimlora_jobs.store import JobStore

TAKEN_S = 60.0
TRIES_KEPT = 100  # of a job
LOOKED_AT = 10_000  # entries that are due, in search of one whose receiver is free


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
        if not run_script(self.store.redis, "outbox_add", keys=keys, args=[job_id, url]):
            raise JobMissing(f"no job {job_id!r}")

    def addresses(self, job_id: str) -> list[str]:
        """The addresses that are, or were, to be told of a job's end."""
        return sorted(map(text_of, self.store.redis.smembers(self._addresses(job_id))))

    def take(
        self, *, at_most: int, per_origin: int, calling: Mapping[str, int]
    ) -> list[Notice]:
        """Take what is due; it is due again in a minute unless it is noted by then.

        Args:
            at_most: How many.
            per_origin: How many of one origin, with those that are being called already.
            calling: How many of each origin are.
        """
        now = self.store.now_ms()
        busy = [part for origin, n in calling.items() for part in (origin, n)]
        given = [now, now + int(TAKEN_S * 1000), at_most, per_origin, LOOKED_AT, *busy]
        entries = run_script(self.store.redis, "outbox_take", keys=[self._key()], args=given)
        return [Notice(*text_of(entry).split(" ", 1)) for entry in entries]

    def failed_tries(self, notice: Notice) -> int:
        """How many tries have failed so far."""
        return int(self.store.redis.hget(self._tries(), notice.entry) or 0)

    def note(self, notice: Notice, tried: WebhookTry) -> None:
        """Put a try on record, and with it what becomes of the notice: again, or settled."""
        due = tried.next_try_at
        keys = [
            self._key(), self._tries(), self.store.key("job", notice.job_id),
            self._log(notice.job_id),
        ]  # fmt: skip
        given: list[str | int] = [
            notice.entry, round(due.timestamp() * 1000) if due else "",
            tried.model_dump_json(), TRIES_KEPT,
        ]  # fmt: skip
        run_script(self.store.redis, "outbox_note", keys=keys, args=given)

    def give_back(self, notice: Notice) -> None:
        """Let a notice that was taken be due again at once."""
        self.store.redis.zadd(self._key(), {notice.entry: self.store.now_ms()}, xx=True)

    def tries(self, job_id: str) -> list[WebhookTry]:
        """What was tried for a job, the newest first."""
        entries = self.store.redis.lrange(self._log(job_id), 0, -1)
        return [WebhookTry.model_validate_json(text_of(entry)) for entry in entries]

    def waiting_for(self, job_id: str) -> int:
        """How many addresses of a job are still to be told."""
        addresses = self.addresses(job_id)
        if not addresses or not self.store.status_of(job_id).is_final:
            return len(addresses)
        entries = [Notice(job_id, url).entry for url in addresses]
        return sum(
            score is not None for score in self.store.redis.zmscore(self._key(), entries)
        )

    def waiting(self) -> int:
        """How many notices are not settled."""
        return int(self.store.redis.zcard(self._key()))

    def _key(self) -> str:
        return self.store.key("outbox")

    def _tries(self) -> str:
        return self.store.key("outbox_tries")

    def _log(self, job_id: str) -> str:
        return self.store.key("webhook_tries", job_id)

    def _addresses(self, job_id: str) -> str:
        return self.store.key("webhooks", job_id)
