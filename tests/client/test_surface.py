"""What the client offers: the same blocking and asynchronous, and nothing changed unnoticed."""

import inspect

import pytest

import fimlora_client
from fimlora_client import aio, client

PAIRS = [
    (client.Client, aio.AsyncClient),
    (client.Jobs, aio.AsyncJobs),
    (client.Datasets, aio.AsyncDatasets),
    (client.Models, aio.AsyncModels),
    (client.JobHandle, aio.AsyncJobHandle),
]


def methods(kind):
    """Public methods with their parameters."""
    found = inspect.getmembers(kind, inspect.isfunction)
    return {
        name: [str(p) for p in inspect.signature(function).parameters.values()]
        for name, function in found
        if not name.startswith("_")
    }


@pytest.mark.parametrize(("blocking", "asynchronous"), PAIRS)
def test_both_clients_have_the_same_methods_with_the_same_parameters(blocking, asynchronous):
    """Nothing can be added to one and forgotten in the other."""
    assert methods(blocking) == methods(asynchronous)


NAMES = {
    "ApiError",
    "AsyncClient",
    "AsyncJobHandle",
    "CalibrationRequest",
    "Client",
    "ClientError",
    "ConnectionFailed",
    "DigestMismatch",
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
    "Client.calibrate": "self, request=None, *, idempotency_key=None, **fields",
    "JobHandle.wait": "self, *, timeout=3600, poll_every=None, on_progress=None",
    "JobHandle.events": "self, *, after=None",
    "JobHandle.download": "self, folder",
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


def test_the_public_names_are_pinned():
    """Adding one is a decision, losing one is a breaking change."""
    assert set(fimlora_client.__all__) == NAMES
    assert all(hasattr(fimlora_client, name) for name in NAMES)


@pytest.mark.parametrize("path", SIGNATURES)
def test_signatures_are_pinned(path):
    """Parameters keep their names, order and defaults."""
    assert signature(path) == SIGNATURES[path]
