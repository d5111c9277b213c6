"""What the client offers: nothing changes unnoticed."""

import inspect
import subprocess
import sys

import pytest

import fimlora_client
from fimlora_client.bodies import (
    CalibrationFields,
    ComparisonFields,
    EvaluationFields,
    JobComparisonFields,
    PlanFields,
)
from fimlora_contract.comparison_requests import ComparisonRequest, JobComparisonRequest
from fimlora_contract.evaluations import EvaluationRequest
from fimlora_contract.requests import CalibrationRequest, PlanRequest

NAMES = {
    "ApiError",
    "AsyncClient",
    "AsyncEvaluationHandle",
    "AsyncJobHandle",
    "CalibrationRequest",
    "Client",
    "ClientError",
    "ConnectionFailed",
    "DigestMismatch",
    "EvaluationHandle",
    "EvaluationRequest",
    "FetchedPattern",
    "JobCanceled",
    "JobFailed",
    "JobHandle",
    "MissingExtra",
    "Result",
    "RetryPolicy",
    "WaitTimeout",
}

# Parameters with their defaults; a bare * begins the keyword-only ones.
SIGNATURES = {
    "Client": "base_url=None, *, api_key=None, http=None, sleep=<built-in function sleep>, "
    "context=None",
    "Client.calibrate": "self, request=None, *, idempotency_key=None, wait=0, **fields",
    "Client.compare": "self, request=None, *, idempotency_key=None, wait=0, **fields",
    "Client.evaluate": "self, request=None, *, idempotency_key=None, wait=0, **fields",
    "EvaluationHandle.wait": "self, *, timeout=21600, poll_every=None, on_progress=None",
    "JobHandle.wait": "self, *, timeout=3600, poll_every=None, on_progress=None",
    "JobHandle.events": "self, *, after=None",
    "JobHandle.download": "self, folder, *, on_file=None",
    "JobHandle.allocate": "self, **fields",
    "Result.to_lora_config": "self",
}


def signature(path):
    """Parameters without their types, which may become wider."""
    found = fimlora_client
    for name in path.split("."):
        found = getattr(found, name)
    parameters = inspect.signature(found).parameters.values()
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
    return str(inspect.Signature(plain))[1:-1]


@pytest.mark.parametrize(
    ("fields", "request_"),
    [
        (CalibrationFields, CalibrationRequest),
        (EvaluationFields, EvaluationRequest),
        (PlanFields, PlanRequest),
        (ComparisonFields, ComparisonRequest),
        (JobComparisonFields, JobComparisonRequest),
    ],
    ids=["calibrate", "evaluate", "allocate", "compare", "compare a job"],
)
def test_every_field_of_a_request_is_a_keyword(fields, request_):
    """An editor offers what the service takes; validating alone is a method of its own."""
    assert set(fields.__annotations__) == set(request_.model_fields) - {"validate_only"}


def test_the_public_names_are_pinned():
    """Adding one is a decision, losing one is a breaking change."""
    assert set(fimlora_client.__all__) == NAMES
    assert all(hasattr(fimlora_client, name) for name in NAMES)


@pytest.mark.parametrize("path", SIGNATURES)
def test_signatures_are_pinned(path):
    """Parameters keep their names, order and defaults."""
    assert signature(path) == SIGNATURES[path]


def test_the_client_loads_nothing_of_what_keeps_jobs():
    """It runs where none of it is installed, and starts at once where all of it is."""
    kept_out = ("fimlora_jobs", "redis", "rq", "fsspec", "pyarrow", "numpy")
    code = f"""
import sys
import fimlora_client, fimlora_client.cli
print([name for name in {kept_out} if name in sys.modules])
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert ran.stdout.strip() == "[]"
