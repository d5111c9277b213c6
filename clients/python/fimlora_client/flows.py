"""What the client does, written once for the blocking and the asynchronous client.

A flow is a generator: it yields a `Call` to be sent and is given the `Answer`, or yields a
`Pause`. It never touches a socket or a clock itself, so `Client` and `AsyncClient` are two
short loops that drive the same flows.
"""

import random
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from fimlora_client.calls import Answer, Call, raise_for_problem, read_answer
from fimlora_client.errors import ConnectionFailed, WaitTimeout, failure_of
from fimlora_client.retries import RetryPolicy, is_retryable, retry_after_s
from fimlora_contract.jobs import Health, Job, JobStatus

Model = TypeVar("Model")
FIRST_POLL_S = 0.1
SLOWEST_POLL_S = 2.0
OnProgress = Callable[[Job], None]


@dataclass(frozen=True, slots=True)
class Pause:
    """Let some seconds pass."""

    seconds: float


Flow = Generator[Call | Pause, Any, Model]


@dataclass(frozen=True, slots=True)
class Context:
    """What flows need of the world, so that tests can give another one.

    Attributes:
        policy: When and how long to retry.
        random: A number in [0, 1).
        clock: Monotonic seconds, for deadlines.
        unix_time: Wall clock seconds, for dates in ``Retry-After``.
    """

    policy: RetryPolicy = field(default_factory=RetryPolicy)
    random: Callable[[], float] = random.random
    clock: Callable[[], float] = time.monotonic
    unix_time: Callable[[], float] = time.time

    def hint(self, answer: Answer) -> float | None:
        """Seconds the service asks us to stay away."""
        return retry_after_s(answer.headers.get("retry-after"), now=self.unix_time())


def exchange(call: Call, context: Context) -> Flow[Answer]:
    """Send a call until its answer is final or the retries are used up.

    The call is the same object every time, so it carries the same ``Idempotency-Key``.

    Raises:
        ConnectionFailed: The service was not reached in any try.
    """
    for retry in range(context.policy.max_retries):
        hint = None
        try:
            answer: Answer = yield call
        except ConnectionFailed:
            pass
        else:
            if not is_retryable(answer):
                return answer
            hint = context.hint(answer)
        yield Pause(context.policy.pause(retry, hint_s=hint, random=context.random()))
    last: Answer = yield call
    return last


def ask(call: Call, model: type[Any], context: Context) -> Flow[Any]:
    """Send a call and read its answer as a model."""
    answer = yield from exchange(call, context)
    return read_answer(answer, model)


def check_health(call: Call) -> Flow[Health]:
    """Ask once how the service is; it answers 503 with the same body when it is not well."""
    answer: Answer = yield call
    if answer.status == 503 and b'"checks"' in answer.content:
        return Health.model_validate_json(answer.content)
    return read_answer(answer, Health)


def save(call: Call, context: Context) -> Flow[None]:
    """Send a call whose body goes to a file."""
    raise_for_problem((yield from exchange(call, context)))


def wait_until_final(
    call: Call,
    context: Context,
    *,
    timeout: float,
    poll_every: float | None,
    on_progress: OnProgress | None,
) -> Flow[Job]:
    """Poll a job until it has ended.

    The pause is ``poll_every`` if given; else it grows from a tenth of a second to what the
    service suggests, so that a short job is answered at once and a long one costs little.

    Raises:
        WaitTimeout: The deadline passed first.
    """
    deadline = context.clock() + timeout
    pause = FIRST_POLL_S
    while True:
        answer = yield from exchange(call, context)
        job = read_answer(answer, Job)
        if on_progress:
            on_progress(job)
        if job.status.is_final:
            return job
        left = deadline - context.clock()
        if left <= 0:
            raise WaitTimeout(f"job {job.id} is still {job.status} after {timeout:g} s")
        slowest = min(context.hint(answer) or SLOWEST_POLL_S, SLOWEST_POLL_S)
        yield Pause(min(poll_every or min(pause, slowest), left))
        pause *= 1.5


def wait_for_success(call: Call, context: Context, **options: Any) -> Flow[Job]:
    """Poll a job until it has succeeded.

    Raises:
        JobFailed: It failed; the exception carries the job.
        JobCanceled: It was canceled.
    """
    job = yield from wait_until_final(call, context, **options)
    if job.status is not JobStatus.SUCCEEDED:
        raise failure_of(job)
    return job


def save_to(call: Call, path: Any) -> Call:
    """The same call with its body going to a file."""
    return replace(call, save_to=path)
