"""What to type next after a refusal, where the service's own advice speaks of routes and fields."""

import re

from fimlora_client.errors import (
    ERRORS,
    AdapterInUse,
    AdapterInvalid,
    AdapterNotFound,
    ArtifactNotFound,
    BudgetInfeasible,
    ClientError,
    DatasetInUse,
    DatasetNotFound,
    DatasetSchema,
    IdempotencyInFlight,
    IdempotencyMismatch,
    JobAlreadyFinished,
    JobCanceled,
    JobFailed,
    JobGone,
    JobNotFinished,
    JobNotFound,
    JobTimedOut,
    KeyNotFound,
    MalformedRequest,
    MethodNotAllowed,
    ModelNotFound,
    NoPattern,
    NotFound,
    OutOfMemoryGpu,
    OutOfMemoryHost,
    Overloaded,
    QueueFull,
    RateLimited,
    ResultExpired,
    Unauthenticated,
    UnsupportedMediaType,
    ValidationFailed,
    WaitTimeout,
    failure_of,
)
from fimlora_contract.jobs import Job
from fimlora_contract.problems import PROBLEMS

ROUTE = re.compile(r"\b(GET|POST|PUT|DELETE) /")
RETRY = PROBLEMS["worker_lost"].next_step
OPTIONS = "Correct that; the command with --help says what each option takes."
LATER = "Wait a little and try again; whoever runs the service can raise the limit."
VERSIONS = (
    "`fimlora status` tells the service's version: the command line may be older or newer."
)
SMALLER = "Use a smaller --max-length, or --executor streamed."
NEXT_STEPS: dict[type[ClientError], str] = {
    AdapterInUse: "Wait for these jobs, or `fimlora cancel` them.",
    AdapterInvalid: "Correct what is named; plain LoRA as PEFT saves it is read.",
    AdapterNotFound: "`fimlora adapters` lists adapters; `fimlora adapters upload` adds one.",
    ArtifactNotFound: "`fimlora artifacts` lists the files of a result.",
    BudgetInfeasible: "Choose a --budget, --r-min or --r-max inside the named interval.",
    DatasetInUse: "Wait for these jobs, or `fimlora cancel` them.",
    DatasetNotFound: "`fimlora datasets` lists datasets; a .jsonl, .json, .csv or .parquet file is uploaded.",
    DatasetSchema: "Correct the rows; or say which column is what by --column ROLE=NAME: "
    "the roles are text, text_pair, label, prompt, completion, messages, tools, "
    "system, instruction, input, images, audio.",
    IdempotencyInFlight: "Send it again in a second.",
    IdempotencyMismatch: "Send it again.",
    JobAlreadyFinished: "`fimlora show` has the outcome.",
    JobCanceled: "`fimlora retry` queues it once more.",
    JobGone: "`fimlora calibrate` with the same inputs: what is still known answers at once.",
    JobNotFinished: "`fimlora show` tells how far it is.",
    JobNotFound: "`fimlora jobs` lists the jobs.",
    JobTimedOut: "Use fewer or smaller batches: --batches, --batch-size, --max-length.",
    KeyNotFound: "`fimlora keys` lists the keys.",
    MalformedRequest: VERSIONS,
    MethodNotAllowed: VERSIONS,
    ModelNotFound: "`fimlora models` lists registered models; `fimlora models add` adds one.",
    NoPattern: "`fimlora calibrate` makes a result, `fimlora pin` names one.",
    NotFound: VERSIONS,
    OutOfMemoryGpu: SMALLER,
    OutOfMemoryHost: SMALLER,
    Overloaded: LATER,
    QueueFull: LATER,
    RateLimited: LATER,
    ResultExpired: "`fimlora calibrate` with the same inputs makes it anew.",
    Unauthenticated: "Set FIMLORA_API_KEY; an admin makes keys with `fimlora keys create`.",
    UnsupportedMediaType: VERSIONS,
    ValidationFailed: OPTIONS,
    WaitTimeout: "The job goes on; `fimlora show` tells how far it is.",
}


def next_step_of(error: ClientError) -> str:
    """What to do about an error, in commands and options."""
    if isinstance(error, JobFailed):
        return _after_failure(error)
    known = NEXT_STEPS.get(type(error))
    # The service may know more of a refusal than its code tells.
    usual = PROBLEMS.get(error.code)
    is_told = usual is not None and error.next_step not in {usual.next_step, ""}
    if known and not (is_told and not ROUTE.search(error.next_step)):
        return known
    return error.next_step


def step_after(job: Job) -> str:
    """What to do about a job that ended without a result."""
    return next_step_of(failure_of(job))


def _after_failure(error: JobFailed) -> str:
    """A retry is offered only where the same request may succeed."""
    job = error.job
    if job is None or job.error is None:
        return "`fimlora show` tells why."
    step = NEXT_STEPS.get(ERRORS.get(error.code, JobFailed)) or error.next_step
    again = f"`fimlora retry {job.id}` queues it once more."
    if step == RETRY:  # nothing else can be done about these
        return again
    return f"{step} {again}" if job.error.retryable else step
