"""Watch several jobs to their end, over a service that is away for a while if need be."""

from collections.abc import Callable, Sequence

from fimlora_client.calls import Answer, read_answer
from fimlora_client.context import Context
from fimlora_client.errors import ConnectionFailed
from fimlora_client.polling import Pace
from fimlora_client.retries import is_rate_limited, is_retryable
from fimlora_contract.jobs import Job

OnAway = Callable[[ConnectionFailed], object]
MOST_A_SECOND = 20


class Watch:
    """Knows which jobs are open, what was last seen of each, and when to give up.

    Attributes:
        open: Ids of those that have not ended.
        is_known: Whether the service has answered, so that it is waited for.
    """

    def __init__(
        self,
        job_ids: Sequence[str],
        context: Context,
        *,
        poll_every: float | None,
        patience: float,
    ) -> None:
        self.open = tuple(dict.fromkeys(job_ids))
        self.is_known = False
        self._context = context
        self._given, self._patience = poll_every, patience
        self._pace = Pace(poll_every)
        self._seen: dict[str, Job] = {}
        self._heard = context.clock()
        self._asked_for: float | None = None

    def read(self, job_id: str, answer: Answer) -> Job | None:
        """The job if it has changed; what passes by waiting is no change.

        Raises:
            ApiError: The answer is a problem that waiting does not mend.
            ConnectionFailed: The service answers that it cannot, for now.
        """
        if is_rate_limited(answer):
            self._asked_for = self._context.pause_asked_for(answer)
            return None
        if self.is_known and is_retryable(answer):
            raise ConnectionFailed(f"the service answers {answer.status}, for now")
        job = read_answer(answer, Job)
        self.is_known, self._heard = True, self._context.clock()
        if job.status.is_final:
            self.open = tuple(other for other in self.open if other != job_id)
        if self._seen.get(job_id) == job:
            return None
        self._seen[job_id] = job
        self._pace = Pace(self._given)  # what moves is looked at sooner
        return job

    def lost(self, error: ConnectionFailed) -> None:
        """Count an answer that did not come.

        Raises:
            ConnectionFailed: There has been none yet, or none for too long.
        """
        silent_s = self._context.clock() - self._heard
        if not self.is_known or silent_s >= self._patience:
            raise error

    def pause(self) -> float:
        """Seconds before all are asked again; many are asked less often."""
        asked_for, self._asked_for = self._asked_for, None
        return max(self._pace.next(None), len(self.open) / MOST_A_SECOND, asked_for or 0.0)
