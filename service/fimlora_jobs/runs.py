"""The parts of a job that any worker may take: plans, claims and results.

They are the training runs of an evaluation, or the shards of a calibration, and called runs here.
A worker claims a run before it begins it, and holds on to the claim for as long as it lives; the
claim of one that died runs out, and the run is another's. A result is kept once and never
changes: should a worker that was taken for dead finish after all, its result is the same.
Runs on unlike hardware come to other figures, so each keeps to its own: what was trained on another
is not seen. Everything here goes with the job's record.
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

# Raise it with every change after which equal requests train or judge in another way.
TRAINING = 2
CLAIM_MS = int(LEASE_S * 1000)


@dataclass(frozen=True, slots=True)
class Runs:
    """The runs of one job.

    Attributes:
        store: Where jobs are on record.
        job_id: The job.
        on: Device and dtype that runs are carried out on here; the others' are not seen then.
    """

    store: JobStore
    job_id: str
    on: str = ""

    def prepare(self, plans: Mapping[str, Any], *, on: str = "") -> None:
        """Put on record what every worker needs to train any run, and on what it is to."""
        content = {"plans": plans, "on": on, "training": TRAINING}
        self.store.redis.set(self._plans(), json.dumps(content, allow_nan=False))
        self._forget_if_gone()

    def prepared(self) -> dict[str, Any] | None:
        """What is needed to train; ``None`` before it is there."""
        found = self._prepared()
        return None if found is None else dict(found["plans"])

    def prepared_on(self) -> str | None:
        """Device and dtype of the attempt that leads; ``None`` before it is ready."""
        found = self._prepared()
        return None if found is None else str(found["on"])

    def results(self) -> dict[str, dict[str, Any]]:
        """The result of every finished run."""
        stored = self.store.redis.hgetall(self._results())
        return {run: json.loads(text_of(result)) for run, result in self._own(stored).items()}

    def claim(self, runs: Sequence[str], *, holder: str, for_ms: int = CLAIM_MS) -> str | None:
        """Claim the first run that nobody has finished and nobody alive is at."""
        keys = [self.store.key("job", self.job_id), self._results(), self._claims()]
        given: list[str | int] = [holder, for_ms, *map(self._field, runs)]
        claimed = run_script(self.store.redis, "run_claim", keys=keys, args=given)
        return text_of(claimed).removeprefix(self._field("")) if claimed else None

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
        given = [self._field(run), json.dumps(result, allow_nan=False)]
        kept = run_script(self.store.redis, "run_keep", keys=keys, args=given)
        if kept == -1:
            raise JobMissing(f"no job {self.job_id!r}")
        return bool(kept)

    def discard(self, run: str) -> None:
        """Forget a result that turned out to be of no use: the run is anybody's again."""
        self.store.redis.hdel(self._results(), self._field(run))

    def note(self, run: str, n_done: int) -> None:
        """Note how far a run is that somebody is at."""
        self.store.redis.hset(self._steps(), self._field(run), n_done)
        self._forget_if_gone()

    def noted(self) -> dict[str, int]:
        """How far runs were when that was last noted."""
        stored = self.store.redis.hgetall(self._steps())
        return {run: int(n_done) for run, n_done in self._own(stored).items()}

    def claimed(self) -> dict[str, str]:
        """Runs that somebody is at, each with its holder."""
        now, found = self.store.now_ms(), {}
        claims = self.store.redis.hgetall(self._claims())
        for run, claim in self._own(claims).items():
            until_ms, _, holder = text_of(claim).partition(" ")
            if int(until_ms) > now:
                found[run] = holder
        return found

    def note_failed_hand(self) -> None:
        """Note that a hand could not train."""
        self.store.redis.incr(self._failed())
        self._forget_if_gone()

    def failed_hands(self) -> int:
        """How many hands could not."""
        return int(self.store.redis.get(self._failed()) or 0)

    def adopt(self, job_id: str) -> None:
        """Take over what the runs of an earlier job with the same request came to.

        Those of code that trained in another way are left alone.
        """
        earlier = Runs(self.store, job_id)
        found = earlier._prepared()
        if found is None or found["training"] != TRAINING:
            return
        self.store.redis.copy(earlier._plans(), self._plans())
        self.store.redis.copy(earlier._results(), self._results())
        self._forget_if_gone()

    def _forget_if_gone(self) -> None:
        """Leave nothing of a job that was deleted before something was written beside it."""
        if not self.store.redis.exists(self.store.key("job", self.job_id)):
            self.store.redis.delete(
                self._plans(), self._results(), self._failed(), self._steps()
            )

    def _prepared(self) -> dict[str, Any] | None:
        text = self.store.redis.get(self._plans())
        found: dict[str, Any] | None = json.loads(text_of(text)) if text else None
        return found

    def _field(self, run: str) -> str:
        return f"{self.on}|{run}" if self.on else run

    def _own(self, stored: Mapping[Any, Any]) -> dict[str, Any]:
        """What is stored of runs on the hardware at hand, by run."""
        start = self._field("")
        named = {text_of(field): value for field, value in stored.items()}
        return {f.removeprefix(start): v for f, v in named.items() if f.startswith(start)}

    def _plans(self) -> str:
        return self.store.key("plans", self.job_id)

    def _results(self) -> str:
        return self.store.key("runs", self.job_id)

    def _failed(self) -> str:
        return self.store.key("failed_hands", self.job_id)

    def _steps(self) -> str:
        return self.store.key("run_steps", self.job_id)

    def _claims(self) -> str:
        return self.store.key("claims", self.job_id)
