"""The page on problems: every code with its status, its meaning and the next step."""

from textwrap import dedent

INTRO = """\
# Troubleshooting

Every refusal and every failed job has a code. Over HTTP it is a problem document (RFC 9457):
`code`, a `detail` that says what was given and what is allowed, and `next_step`. The command line
prints the same and ends with 3 where something is not there, 4 where a job failed, 5 where it has
not ended, 6 where a check that was asked for says no, 2 for wrong usage, 1 for all else. In Python each code is an exception of its own, below
`fimlora_client.ClientError`. `fimlora status` says whether service, store and workers are well.

Report the *request id* (`request_id`, header `x-request-id`) to whoever operates the service: the
log has the same id, and the traceback that answers never show.

Made by `make docs` from the codes themselves.
"""

GROUPS: list[tuple[str, str, list[str]]] = [
    (
        "What was sent",
        (
            "Where the answer has this code, nothing was queued; the same request is refused again until it "
            "is changed. A job can end with `budget_infeasible`, too: where only the loaded model tells which "
            "modules are targets, the worker checks the budget, before it measures. `fimlora estimate` says "
            "beforehand who checks it."
        ),
        [
            "malformed_request", "validation_failed", "budget_infeasible", "payload_too_large",
            "unsupported_media_type", "not_acceptable", "method_not_allowed", "not_found",
            "request_timeout", "idempotency_mismatch", "idempotency_in_flight",
        ],
    ),
    (
        "Rows",
        "What rows may look like, with examples, is on the page [on datasets](datasets.md).",
        ["dataset_schema", "dataset_empty", "dataset_not_found", "dataset_unreachable", "dataset_in_use"],
    ),
    (
        "Models",
        "Which architectures are measured is on the page [on families](families.md).",
        [
            "model_not_found", "model_gated", "unsupported_architecture", "unsafe_weights",
            "hub_unreachable", "download_failed",
        ],
    ),
    (
        "Jobs and results",
        "A job's `error` has the code, the sentence, and whether trying again can help.",
        [
            "job_not_found", "job_not_finished", "job_failed", "job_already_finished", "job_gone",
            "canceled", "result_expired", "artifact_not_found", "no_pattern",
        ],
    ),
    (
        "While a job runs",
        "An attempt that is lost with its worker is tried again by itself, three times at most.",
        [
            "out_of_memory_gpu", "out_of_memory_host", "timeout", "numerical_failure",
            "worker_lost", "internal",
        ],
    ),
    (
        "Trained adapters",
        "What is read of them is on the page [on adapters](adapters.md).",
        ["adapter_not_found", "adapter_invalid", "adapter_in_use"],
    ),
    (
        "Who may do what",
        "Keys, scopes and tenants are explained on the page [on keys](keys.md).",
        [
            "unauthenticated", "forbidden", "key_not_found", "host_not_allowed",
            "origin_not_allowed", "model_not_allowed", "source_not_allowed",
            "webhook_not_allowed",
        ],
    ),
    (
        "Too much at once, or something is away",
        "Nothing is wrong with the request. `Retry-After` says when; the client waits by itself.",
        [
            "rate_limited", "quota_exceeded", "queue_full", "overloaded", "redis_unavailable",
            "storage_unavailable", "disk_full",
        ],
    ),
]  # fmt: skip


def troubleshooting_page() -> str:
    """The page, with a table per kind of trouble.

    Returns:
        Its text.

    Raises:
        ValueError: A code is in no table, or in two.
    """
    from fimlora_contract.problems import PROBLEMS

    told = [code for _, _, codes in GROUPS for code in codes]
    if sorted(told) != sorted(PROBLEMS):
        raise ValueError(f"docs/troubleshooting_page.py: {set(told) ^ set(PROBLEMS)}")
    parts = [INTRO]
    for title, about, codes in GROUPS:
        rows = [
            f"| `{code}` | {PROBLEMS[code].status} | {PROBLEMS[code].title} | {PROBLEMS[code].next_step} |"
            for code in codes
        ]
        head = "| code | status | what it means | what to do |\n| --- | --- | --- | --- |"
        parts.append(f"## {title}\n\n{about}\n\n{head}\n" + "\n".join(rows) + "\n")
    parts.append(_SYMPTOMS)
    return "\n".join(parts)


_SYMPTOMS = dedent("""\
    ## No code, but not what you expected

    | what you see | why | what to do |
    | --- | --- | --- |
    | `no answer from http://127.0.0.1:8000` | nothing runs there, or on another port | `fimlora up` in another terminal; `FIMLORA_URL` says where the client looks |
    | the job stays queued | no worker, or all are at work | `fimlora status` lists the workers; `fimlora up --workers 2` starts more |
    | the plan says that its signal is none | other labels would have given about the same ranks | train uniform ranks; see [signal and confidence](explanation/signal.md) |
    | every module has the same rank in training | the trainer did not apply `rank_pattern` | give it what [its section](how-to/train.md) says; `fimlora verify` tells [whether it did](how-to/verify.md) |
    | PEFT warns of keys that match nothing | the pattern was made for another class or wrapper of the model | calibrate the model class that is trained |
    | vLLM refuses the adapter's rank | `--max-lora-rank` is 16 unless it is set | `fimlora fetch JOB --format vllm` has the number, `--max-lora-rank` of `calibrate` keeps plans below it |
    | the same request answers at once | an equal one has succeeded | nothing: it is the same result; `--force` measures anew |
    """)
