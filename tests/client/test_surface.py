"""The blocking and the asynchronous client offer the same."""

import inspect

import pytest

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
