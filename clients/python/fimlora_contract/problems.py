"""Every problem type of the service: code, HTTP status, title, and the next step to take.

A problem document (RFC 9457) has ``type`` = ``/problems/<code>``. The client raises one
exception per code, so this table is the single place where codes are made.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from fimlora_contract.base import AnswerModel


class Problem(AnswerModel):
    """An RFC 9457 problem document."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    next_step: str
    instance: str | None = Field(None, description="Path of the request.")
    request_id: str | None = None
    errors: list[dict[str, Any]] = Field([], description="Where a body was wrong, if it was.")


@dataclass(frozen=True, slots=True)
class ProblemType:
    """What is fixed about one code."""

    status: int
    title: str
    next_step: str


PROBLEMS: dict[str, ProblemType] = {
    "malformed_request": ProblemType(
        400,
        "The request cannot be read",
        "Send one JSON object with Content-Type application/json.",
    ),
    "webhook_not_allowed": ProblemType(
        403,
        "The webhook's host is not allowed",
        "Leave it out, or ask the operator to add its host to FIMLORA_WEBHOOK_HOSTS.",
    ),
    "unauthenticated": ProblemType(
        401,
        "A valid API key is needed",
        "Send Authorization: Bearer KEY; an admin makes keys with fimlora keys create.",
    ),
    "forbidden": ProblemType(
        403,
        "The API key does not allow this",
        "Ask an admin for a key with the scope that the detail names.",
    ),
    "host_not_allowed": ProblemType(
        403,
        "The service is not called by this name",
        "Use a name that is allowed, or ask the operator to add it to FIMLORA_ALLOWED_HOSTS.",
    ),
    "origin_not_allowed": ProblemType(
        403,
        "Pages of this origin may not call the service",
        "Ask the operator to add the origin to FIMLORA_ALLOWED_ORIGINS.",
    ),
    "model_not_allowed": ProblemType(
        403,
        "The operator does not allow this base model",
        "Use a model that the detail allows, or ask the operator to add it to "
        "FIMLORA_ALLOWED_MODELS.",
    ),
    "source_not_allowed": ProblemType(
        403,
        "The operator does not allow this dataset",
        "Use a dataset that the detail allows, or ask the operator to add it to "
        "FIMLORA_ALLOWED_DATASETS.",
    ),
    "not_found": ProblemType(404, "There is no such route", "See GET /docs for the routes."),
    "job_not_found": ProblemType(404, "There is no such job", "GET /jobs lists the jobs."),
    "job_gone": ProblemType(
        410,
        "The job ended long ago and is forgotten",
        "Send the request again: what is still cached answers at once.",
    ),
    "result_expired": ProblemType(
        410,
        "The result is no longer stored",
        "Send the request again: it is calibrated anew.",
    ),
    "artifact_not_found": ProblemType(
        404, "The result has no such artefact", "GET /jobs/{id}/result lists the artefacts."
    ),
    "no_pattern": ProblemType(
        404,
        "There is no such rank pattern",
        "POST /calibrate makes one; looking one up never starts work.",
    ),
    "dataset_not_found": ProblemType(
        404,
        "There is no such dataset",
        "GET /datasets lists the datasets; POST /datasets adds one.",
    ),
    "adapter_not_found": ProblemType(
        404,
        "There is no such adapter",
        "GET /adapters lists the adapters; POST /adapters adds one.",
    ),
    "adapter_invalid": ProblemType(
        422,
        "The adapter cannot be used",
        "Correct what the detail names; plain LoRA as PEFT saves it is read.",
    ),
    "adapter_in_use": ProblemType(
        409,
        "Jobs that have not ended need the adapter",
        "Wait for the jobs named in errors, or cancel them.",
    ),
    "key_not_found": ProblemType(404, "There is no such API key", "GET /keys lists the keys."),
    "request_timeout": ProblemType(
        408, "The request was not sent in time", "Send it again over a faster connection."
    ),
    "method_not_allowed": ProblemType(
        405, "The route does not take this method", "See the Allow header."
    ),
    "not_acceptable": ProblemType(
        406, "The route has no such format", "Ask for one of the types the detail names."
    ),
    "job_not_finished": ProblemType(
        409, "The job has not ended", "Poll GET /jobs/{id} until its status is final."
    ),
    "job_failed": ProblemType(409, "The job ended without a result", "Read the job's error."),
    "job_already_finished": ProblemType(
        409, "The job has already ended", "Nothing to do; GET /jobs/{id} has the outcome."
    ),
    "dataset_in_use": ProblemType(
        409,
        "Jobs that have not ended need the dataset",
        "Wait for the jobs named in errors, or cancel them.",
    ),
    "idempotency_in_flight": ProblemType(
        409,
        "A request with this key is being handled",
        "Repeat it with the same key in a second.",
    ),
    "payload_too_large": ProblemType(413, "The body is too large", "Send a smaller body."),
    "unsupported_media_type": ProblemType(
        415, "The content type is not supported", "Use one of the types the detail names."
    ),
    "validation_failed": ProblemType(
        422, "The request is not valid", "Correct the fields named in errors."
    ),
    "idempotency_mismatch": ProblemType(
        422, "The key was used for another request", "Use a fresh Idempotency-Key."
    ),
    "unsupported_architecture": ProblemType(
        422,
        "The model cannot be calibrated",
        "Correct what the detail names, or give another model.",
    ),
    "budget_infeasible": ProblemType(
        422, "No plan meets the budget", "Choose a budget or bounds inside the named interval."
    ),
    "dataset_schema": ProblemType(
        422,
        "The dataset's rows cannot be used",
        'Say which column is what by "columns" of the dataset (fimlora: --column ROLE=NAME), or '
        "correct the rows.",
    ),
    "dataset_empty": ProblemType(
        422,
        "The dataset has nothing to measure",
        "Give rows with text, some of which differ in text and label; the detail says what is "
        "missing.",
    ),
    "unsafe_weights": ProblemType(
        422, "The model has no safetensors weights", "Convert the checkpoint to safetensors."
    ),
    "model_not_found": ProblemType(
        424,
        "There is no such model",
        "Check the id; GET /models lists registered local models.",
    ),
    "model_gated": ProblemType(
        424,
        "Access to the model is restricted",
        "Accept its terms and give the service a token.",
    ),
    "dataset_unreachable": ProblemType(
        424, "The dataset cannot be reached", "Check the id, revision and the hub's state."
    ),
    "rate_limited": ProblemType(429, "Too many requests", "Wait as long as Retry-After says."),
    "quota_exceeded": ProblemType(
        429,
        "The tenant's quota is used up",
        "Wait for open jobs to end, delete what is not needed, or ask an admin for more.",
    ),
    "queue_full": ProblemType(
        503,
        "The queue is full",
        "Wait as long as Retry-After says; the operator sets FIMLORA_MAX_OPEN_JOBS.",
    ),
    "overloaded": ProblemType(
        503,
        "The service has no connection to spare",
        "Wait as long as Retry-After says; the operator sets FIMLORA_MAX_CONNECTIONS.",
    ),
    "hub_unreachable": ProblemType(
        503, "The hub does not answer", "Try again later, or use a registered local model."
    ),
    "redis_unavailable": ProblemType(503, "The job store does not answer", "Try again later."),
    "storage_unavailable": ProblemType(
        503, "The artefact storage does not answer", "Try again later."
    ),
    "disk_full": ProblemType(507, "The service has no disk space left", "Tell the operator."),
    "internal": ProblemType(
        500, "The service failed", "Report the request id to the operator."
    ),
    # Of jobs only: these end a job and never answer a request by themselves.
    "worker_lost": ProblemType(500, "The worker was lost too often", "Retry the job."),
    "out_of_memory_gpu": ProblemType(
        500, "The device ran out of memory", "Use a smaller max_length, or executor streamed."
    ),
    "out_of_memory_host": ProblemType(
        500, "The machine ran out of memory", "Use a smaller max_length, or executor streamed."
    ),
    "timeout": ProblemType(500, "The job ran out of time", "Use fewer or smaller batches."),
    "canceled": ProblemType(
        409, "The job was canceled", "Submit it again if that was a mistake."
    ),
    "download_failed": ProblemType(500, "A download failed", "Retry the job."),
    "numerical_failure": ProblemType(
        422, "The calibration gave no finite numbers", "Use dtype float32, or check the data."
    ),
}

# What a field of a request takes, where it is wrong as a whole.
FORMS_OF_FIELDS = {
    "body.base_model": 'Give base_model as "namespace/name" of the Hub or a registered name; '
    "GET /models lists these.",
    "body.dataset": 'Give dataset as "namespace/name" of the Hub, a registered name, an upload\'s '
    'id ("ds_...") or {"source": "inline", "rows": [...]}; GET /datasets lists what is here.',
    "body.budget": 'Give budget as a mean rank, such as 8, or as one of {"parameters": N}, '
    '{"fraction": F} and {"bytes": N}.',
}


def step_for(errors: Sequence[Mapping[str, Any]]) -> str | None:
    """The next step of a request whose fields are wrong, by the first of them.

    Args:
        errors: What is wrong, by ``field``.

    Returns:
        The step; ``None`` if no field is named.
    """
    fields = list(dict.fromkeys(str(e["field"]) for e in errors if e.get("field")))
    if not fields:
        return None
    others = f" Then correct the other {len(fields) - 1} that errors name." * (len(fields) > 1)
    known = FORMS_OF_FIELDS.get(fields[0])
    return (known or f"Correct {fields[0]} as errors say.") + others
