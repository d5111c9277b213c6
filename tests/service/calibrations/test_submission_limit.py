"""Submissions are worked on a few at a time, and who waits for the hub holds up no other."""

import asyncio
import threading
from collections.abc import Callable

import pytest

from fimlora_contract.requests import CalibrationRequest
from fimlora_service.calibrations.submission_limit import N_HUB, N_NEAR, SubmissionLimit

REST = {"dataset": {"source": "inline", "rows": [{"text": "a"}]}, "budget": 8}
NEAR = CalibrationRequest.model_validate(REST | {"base_model": "local:tiny"})
FROM_HUB = [
    CalibrationRequest.model_validate(REST | {"base_model": "org/model"}),
    CalibrationRequest.model_validate(
        REST | {"base_model": "local:tiny", "dataset": {"source": "hub", "id": "org/data"}}
    ),
    CalibrationRequest.model_validate(
        REST
        | {"base_model": "local:tiny", "retain": "org/data", "allocation": {"method": "vila"}}
    ),
]
SOON_S = 0.2
LONG_S = 30


class Door:
    """Steps that wait until they are let through, and how many have come to wait."""

    def __init__(self) -> None:
        self.waiting = 0
        self._lock, self._open = threading.Lock(), threading.Event()

    def step(self) -> str:
        with self._lock:
            self.waiting += 1
        assert self._open.wait(LONG_S)
        return "done"

    def let_through(self) -> None:
        self._open.set()


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(LONG_S):
        while not is_so():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("request_", "others", "limit"),
    [
        (NEAR, FROM_HUB[0], N_NEAR),
        (FROM_HUB[0], NEAR, N_HUB),
        (FROM_HUB[1], NEAR, N_HUB),
        (FROM_HUB[2], NEAR, N_HUB),
    ],
    ids=["near", "model-from-hub", "dataset-from-hub", "retain-from-hub"],
)
def test_a_full_limit_holds_up_only_its_own(request_, others, limit):
    """As many steps as there are places run at once; those that wait for something else go past."""

    async def scene() -> None:
        limiter, door = SubmissionLimit(), Door()
        steps = [
            asyncio.create_task(limiter.run(request_, door.step)) for _ in range(limit + 2)
        ]
        await until(lambda: door.waiting == limit)
        await asyncio.sleep(SOON_S)
        assert door.waiting == limit

        assert await asyncio.wait_for(limiter.run(others, lambda: "past"), LONG_S) == "past"
        door.let_through()

        assert await asyncio.gather(*steps) == ["done"] * (limit + 2)

    asyncio.run(scene())


def test_a_step_that_fails_gives_its_place_back():
    """More failures than there are places, and the next one is taken."""

    def fail() -> None:
        raise LookupError("no such thing")

    async def scene() -> str:
        limiter = SubmissionLimit()
        for _ in range(N_NEAR + 1):
            with pytest.raises(LookupError, match="no such thing"):
                await limiter.run(NEAR, fail)
        return await asyncio.wait_for(limiter.run(NEAR, lambda: "done"), LONG_S)

    assert asyncio.run(scene()) == "done"
