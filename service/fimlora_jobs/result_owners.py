"""Whose results are: the tenants of which a job has made one, by its content address."""

from dataclasses import dataclass

from fimlora_jobs.reader import JobReader

ALL = "*"
KEPT_S = 90 * 24 * 3600


@dataclass(frozen=True, slots=True)
class ResultOwners:
    """Whose results are, in the same Redis as the jobs."""

    store: JobReader

    def add(self, digest: str, owner: str) -> None:
        """Note that a tenant has a result; empty for the operator, `ALL` for every tenant."""
        pipeline = self.store.redis.pipeline()
        pipeline.sadd(self._key(digest), owner)
        pipeline.persist(self._key(digest))
        pipeline.execute()

    def has(self, digest: str, owner: str) -> bool:
        """Whether a tenant has a result; what no owner is noted of is the operator's."""
        pipeline = self.store.redis.pipeline(transaction=False)
        pipeline.exists(self._key(digest))
        pipeline.smismember(self._key(digest), [owner, ALL])
        is_noted, found = pipeline.execute()
        return any(found) or (not is_noted and not owner)

    def forget_later(self, digest: str) -> None:
        """Keep what is known of a result that is gone for a while: its owners are told so."""
        self.store.redis.expire(self._key(digest), KEPT_S)

    def _key(self, digest: str) -> str:
        return self.store.key("result_owners", digest)
