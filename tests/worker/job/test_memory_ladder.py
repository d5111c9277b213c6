"""What an attempt may ask for after the system has ended others of its job for want of memory."""

from itertools import product

import pytest

from fimlora.errors import OutOfMemory
from fimlora.statistics.options import Executor
from fimlora_worker.job.memory_ladder import (
    PREPARING,
    TRAINING,
    asked,
    check_not_in_vain,
    less_than,
)

AUTO, RESIDENT, STREAMED = Executor.AUTO, Executor.RESIDENT, Executor.STREAMED


def attempts(wanted: Executor, *, largest: int, first: Executor, n: int = 3) -> list[str]:
    """What attempts ask for that are all killed; the first one may choose, as auto does."""
    kills: list[str] = []
    for _ in range(n):
        executor, size = less_than(kills, wanted, largest=largest)
        taken = first if executor is AUTO else executor
        kills.append(asked(taken, size))
    return kills


@pytest.mark.parametrize(
    ("wanted", "largest", "first", "steps"),
    [
        (AUTO, 8, RESIDENT, ["resident 8", "resident 1", "streamed 1"]),
        (AUTO, 1, RESIDENT, ["resident 1", "streamed 1"]),
        (AUTO, 8, STREAMED, ["streamed 8", "streamed 1"]),
        (RESIDENT, 8, RESIDENT, ["resident 8", "resident 1"]),
        (STREAMED, 1, STREAMED, ["streamed 1"]),
    ],
)
def test_each_attempt_asks_for_less_until_nothing_less_is_left(wanted, largest, first, steps):
    """Then the job is told what was tried, and what would take less."""
    assert attempts(wanted, largest=largest, first=first, n=len(steps)) == steps
    with pytest.raises(OutOfMemory, match="nothing smaller is left") as refused:
        less_than(steps, wanted, largest=largest)

    message = str(refused.value)
    assert f"ended {len(steps)} attempts" in message
    assert all(f"{s.split()[0]} by {s.split()[1]} examples" in message for s in steps)
    assert ("executor=auto" in message) is (wanted is RESIDENT)


@pytest.mark.parametrize("wanted", [AUTO, RESIDENT, STREAMED])
def test_no_attempt_asks_for_what_another_was_killed_for(wanted):
    """Whatever kills there were, of any sizes and in any order."""
    ways = [asked(e, n) for e, n in product((RESIDENT, STREAMED), (1, 2, 8))]
    for kills in product(["", *ways], repeat=2):
        for first in (RESIDENT, STREAMED) if wanted is AUTO else (wanted,):
            try:
                executor, size = less_than(kills, wanted, largest=8)
            except OutOfMemory:
                continue
            taken = first if executor is AUTO else executor
            assert asked(taken, size) not in kills


def test_without_a_kill_it_is_as_asked_for():
    assert less_than((), AUTO, largest=8) == (AUTO, 8)
    assert less_than(("", ""), RESIDENT, largest=8) == (RESIDENT, 8)


@pytest.mark.parametrize("what", [PREPARING, TRAINING])
def test_what_cannot_be_had_for_less_is_tried_once_more(what):
    """In a process of its own; after that, it is refused by name."""
    check_not_in_vain([what, "resident 8"])
    with pytest.raises(OutOfMemory, match="ended 2 attempts of this job for want of memory"):
        check_not_in_vain([what, "resident 8", what])
