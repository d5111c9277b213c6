"""How many submissions are worked on at once, so that who only looks is not kept waiting.

Threads of one process take turns at running, and an answer takes several turns: beside sixteen
threads that accept requests, GET /jobs/{id} takes several times as long as beside three, which
accept as many requests in a second (``benchmarks/many_jobs.py``).
"""

from asyncio import Semaphore
from collections.abc import Callable
from typing import TypeVar

from starlette.concurrency import run_in_threadpool

from fimlora_contract.references import HubDataset, HubModel
from fimlora_contract.requests import CalibrationRequest

# More than one, so that a large dataset that is checked for the first time holds up no other. Few
# also means that, while Redis hangs, they are refused three at a time, each after its timeout.
N_NEAR = 3
# These mostly wait for the network, which costs nobody a turn; but they must leave threads to
# all others when the hub is slow to answer.
N_HUB = 16
T = TypeVar("T")


class SubmissionLimit:
    """Threads for submissions, apart by what they wait for; first come, first served."""

    def __init__(self) -> None:
        self._near = Semaphore(N_NEAR)
        self._hub = Semaphore(N_HUB)

    async def run(self, request: CalibrationRequest, step: Callable[[], T]) -> T:
        """Take a step of a submission in a thread."""
        async with self._hub if asks_hub(request) else self._near:
            return await run_in_threadpool(step)


def asks_hub(request: CalibrationRequest) -> bool:
    """Whether the model hub is asked about a request."""
    datasets = (request.dataset, request.retain, request.held_out)
    return isinstance(request.base_model, HubModel) or any(
        isinstance(dataset, HubDataset) for dataset in datasets
    )
