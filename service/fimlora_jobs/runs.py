"""The runs of an evaluation, which any worker may train: plans, claims and results.

A worker claims a run before it trains it, and holds on to the claim for as long as it lives; the
claim of one that died runs out, and the run is another's. A result is kept once and never
changes: should a worker that was taken for dead finish after all, its result is the same.
Everything here goes with the job's record.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fimlora_jobs.answers import text_of
from fimlora_jobs.attempts import LEASE_S
from fimlora_jobs.reader import JobMissing
from fimlora_jobs.scripts import run_script
from fimlora_jobs.store import JobStore

CLAIM_MS = int(LEASE_S * 1000)


@dataclass(frozen=True, slots=True)
class Runs:
    """The runs of one evaluation.

    Attributes:
        store: Where jobs are on record.
        job_id: The evaluation.
    """

    store: JobStore
    job_id: str

    def prepare(self, plans: Mapping[str, Any]) -> None:
        """Put on record what every worker needs to train any run."""
        self.store.redis.set(self._plans(), json.dumps(plans, allow_nan=False))

    def prepared(self) -> dict[str, Any] | None:
        """What is needed to train; ``None`` before it is there."""
        text = self.store.redis.get(self._plans())
        found: dict[str, Any] | None = json.loads(text_of(text)) if text else None
        return found

    def results(self) -> dict[str, dict[str, Any]]:
        """The result of every finished run."""
        stored = self.store.redis.hgetall(self._results())
        return {text_of(run): json.loads(text_of(result)) for run, result in stored.items()}

    def claim(self, runs: Sequence[str], *, holder: str, for_ms: int = CLAIM_MS) -> str | None:
        """Claim the first run that nobody has finished and nobody alive is at."""
        keys = [self._results(), self._claims()]
        given: list[str | int] = [holder, for_ms, *runs]
        claimed = run_script(self.store.redis, "run_claim", keys=keys, args=given)
        return text_of(claimed) if claimed else None

    def hold(self, holder: str, *, for_ms: int = CLAIM_MS) -> int:
        """Hold on to what somebody has claimed; answers how many runs that are."""
        given: list[str | int] = [holder, for_ms]
        held = run_script(self.store.redis, "run_hold", keys=[self._claims()], args=given)
        return int(held)

    def release(self, holder: str) -> int:
        """Give back what somebody has claimed."""
        return self.hold(holder, for_ms=0)

    def keep(self, run: str, result: Mapping[str, Any]) -> bool:
        """Keep the result of a run; false when there is one already.

        Raises:
            JobMissing: The job is gone.
        """
        keys = [self.store.key("job", self.job_id), self._results(), self._claims()]
        given = [run, json.dumps(result, allow_nan=False)]
        kept = run_script(self.store.redis, "run_keep", keys=keys, args=given)
        if kept == -1:
            raise JobMissing(f"no job {self.job_id!r}")
        return bool(kept)

    def claimed(self) -> dict[str, str]:
        """Runs that somebody is at, each with its holder."""
        now, found = self.store.now_ms(), {}
        for run, claim in self.store.redis.hgetall(self._claims()).items():
            until_ms, _, holder = text_of(claim).partition(" ")
            if int(until_ms) > now:
                found[text_of(run)] = holder
        return found

    def note_failed_hand(self) -> None:
        """Note that a hand could not train."""
        self.store.redis.incr(self._failed())

    def failed_hands(self) -> int:
        """How many hands could not."""
        return int(self.store.redis.get(self._failed()) or 0)

    def adopt(self, job_id: str) -> None:
        """Take over what the runs of an earlier job with the same request came to."""
        earlier = Runs(self.store, job_id)
        self.store.redis.copy(earlier._plans(), self._plans())
        self.store.redis.copy(earlier._results(), self._results())

    def _plans(self) -> str:
        return self.store.key("plans", self.job_id)

    def _results(self) -> str:
        return self.store.key("runs", self.job_id)

    def _failed(self) -> str:
        return self.store.key("failed_hands", self.job_id)

    def _claims(self) -> str:
        return self.store.key("claims", self.job_id)
