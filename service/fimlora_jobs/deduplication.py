"""Requests that were seen before: their results, their statistics, their idempotency keys."""

from typing import NamedTuple

from fimlora_contract.jobs import JobStatus
from fimlora_jobs.answers import as_ms, text_of
from fimlora_jobs.reader import JobMissing, JobReader, read_record
from fimlora_jobs.record import SHOWN_FIELDS, JobRecord
from fimlora_jobs.scripts import run_script

IDEMPOTENCY_TTL_S = 24 * 3600
SHARED_TTL_S = 7 * 24 * 3600
FIGURES = "cache_figures"


class Lookup(NamedTuple):
    """What is on record under the digests of a request; ids are empty where there is none.

    Attributes:
        now_ms: The server's time.
        shared: Id of the newest job that equal requests may share.
        result: Id of a job that an equal request has made.
        statistics: Id of a job that has measured the same.
    """

    now_ms: int
    shared: str
    result: str
    statistics: str

    @property
    def is_new(self) -> bool:
        """Whether nothing is on record."""
        return not (self.shared or self.result or self.statistics)


class Deduplication(JobReader):
    """What the next equal request finds."""

    def look_up(self, digest: str, statistics_digest: str) -> Lookup:
        """Look for all that may be on record about a request, in one round trip."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.time()
        # First the job to share: one that ends in the meantime is found by its result.
        pipeline.get(self.key("shared", digest))
        pipeline.get(self.key("cache", digest))
        pipeline.get(self.key("statistics", statistics_digest))
        time, *ids = pipeline.execute()
        return Lookup(as_ms(time), *(text_of(id_ or "") for id_ in ids))

    def remember_result(self, digest: str, job_id: str) -> None:
        """Let the next equal request find this job."""
        self.name(job_id, self.key("cache", digest))

    def find_result(self, digest: str) -> JobRecord | None:
        """The succeeded job of an equal request, if there is one."""
        known = self._succeeded(self._redis.get(self.key("cache", digest)))
        # A job that others share is known a moment before it is remembered.
        return known or self._succeeded(self.shared(digest))

    def remember_statistics(self, digest: str, job_id: str) -> None:
        """Let the next request that would measure the same find this job."""
        self.name(job_id, self.key("statistics", digest))

    def find_statistics(self, digest: str) -> JobRecord | None:
        """A succeeded job that has measured the same, if there is one."""
        return self._succeeded(self._redis.get(self.key("statistics", digest)))

    def name(self, job_id: str, key: str, *, among_others: bool = False) -> None:
        """Let a job be found by a key until it is deleted; nothing if it already is.

        Args:
            job_id: The job.
            key: Holds one id, which this one replaces, or a set of them.
            among_others: Whether it is a set.
        """
        keys = [self._job(job_id), self._names(job_id), key]
        how = "all" if among_others else "newest"
        run_script(self._redis, "name", keys=keys, args=[job_id, how])

    def _names(self, job_id: str) -> str:
        return self.key("names", job_id)

    def _succeeded(self, job_id: object) -> JobRecord | None:
        try:
            record = self.get(text_of(job_id)) if job_id else None
        except JobMissing:
            return None
        return record if record and record.status is JobStatus.SUCCEEDED else None

    def claim_key(self, key: str, *, fingerprint: str, job_id: str) -> tuple[str, str]:
        """Bind an idempotency key to a request, or learn what it is bound to.

        Returns:
            The fingerprint and the job id the key stands for.
        """
        name = self.key("idempotency", key)
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.set(name, f"{fingerprint} {job_id}", nx=True, ex=IDEMPOTENCY_TTL_S)
        pipeline.get(name)
        bound = text_of(pipeline.execute()[1]).split(" ")
        return bound[0], bound[1]

    def claim_key_again(
        self, key: str, *, fingerprint: str, job_id: str
    ) -> tuple[tuple[str, str], JobRecord | None]:
        """Bind a key as before if it is free, and look for the job, in one round trip.

        Returns:
            What `claim_key` does, and the job if it is on record.
        """
        name = self.key("idempotency", key)
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.set(name, f"{fingerprint} {job_id}", nx=True, ex=IDEMPOTENCY_TTL_S)
        pipeline.get(name)
        pipeline.hmget(self._job(job_id), SHOWN_FIELDS)
        _, value, fields = pipeline.execute()
        bound = text_of(value).split(" ")
        return (bound[0], bound[1]), read_record(SHOWN_FIELDS, fields)

    def rebind_key(self, key: str, *, fingerprint: str, job_id: str) -> None:
        """Let an idempotency key stand for the job that its request came to share."""
        value = f"{fingerprint} {job_id}"
        self._redis.set(self.key("idempotency", key), value, ex=IDEMPOTENCY_TTL_S)

    def free_with(self, job_id: str, key: str) -> None:
        """Let an idempotency key be free again once its job is deleted.

        Under its old id the job would begin with attempts that there have been already.
        """
        keys = [self._job(job_id), self._names(job_id), self.key("idempotency", key)]
        run_script(self._redis, "name", keys=keys, args=[job_id, "as it is"])

    def release_key(self, key: str) -> None:
        """Unbind an idempotency key whose request was refused."""
        self._redis.delete(self.key("idempotency", key))
