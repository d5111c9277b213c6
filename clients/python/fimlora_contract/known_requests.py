"""Requests that were seen before: their results, their statistics, their idempotency keys."""

from typing import Any

from fimlora_contract.job_reading import JobMissing, JobReader, text_of
from fimlora_contract.jobs import JobStatus
from fimlora_contract.records import JobRecord

IDEMPOTENCY_TTL_S = 24 * 3600


class KnownRequests(JobReader):
    """What the next equal request finds."""

    def remember_result(self, digest: str, job_id: str) -> None:
        """Let the next equal request find this job."""
        self._redis.set(self.key("cache", digest), job_id)

    def find_result(self, digest: str) -> JobRecord | None:
        """The succeeded job of an equal request, if there is one."""
        known = self._succeeded(self._redis.get(self.key("cache", digest)))
        # A job that others share is known a moment before it is remembered.
        return known or self._succeeded(self.shared(digest))

    def remember_statistics(self, digest: str, job_id: str) -> None:
        """Let the next request that would measure the same find this job."""
        self._redis.set(self.key("statistics", digest), job_id)

    def find_statistics(self, digest: str) -> JobRecord | None:
        """A succeeded job that has measured the same, if there is one."""
        return self._succeeded(self._redis.get(self.key("statistics", digest)))

    def _succeeded(self, job_id: Any) -> JobRecord | None:
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
        self._redis.set(name, f"{fingerprint} {job_id}", nx=True, ex=IDEMPOTENCY_TTL_S)
        bound = text_of(self._redis.get(name)).split(" ")
        return bound[0], bound[1]

    def rebind_key(self, key: str, *, fingerprint: str, job_id: str) -> None:
        """Let an idempotency key stand for the job that its request came to share."""
        value = f"{fingerprint} {job_id}"
        self._redis.set(self.key("idempotency", key), value, ex=IDEMPOTENCY_TTL_S)

    def release_key(self, key: str) -> None:
        """Unbind an idempotency key whose request was refused."""
        self._redis.delete(self.key("idempotency", key))
