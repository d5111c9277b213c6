"""Each further attempt of a job asks for less memory, once the system has ended one for want of it.

A kill cannot be caught. So an attempt notes on the record what it is about to take, and the one
after it takes less: one example at a time, then one block of the model. Where nothing less is
left, it is refused by name: what was too much twice would be too much again.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fimlora.errors import OutOfMemory, UnsupportedModule
from fimlora.statistics.options import Executor

# What attempts are at before they measure, and beside it: neither can be had for less.
PREPARING, TRAINING = "", "training"
MOST_KILLS = 2
_WHILE = {
    PREPARING: "before anything was measured, while its rows and its model were read: give "
    "shorter rows or a smaller model",
    TRAINING: "while it trained: lower batch_size or max_length",
}


def asked(executor: Executor, size: int) -> str:
    """What is noted before a model is measured, so many examples at once."""
    return f"{executor} {size}"


def check_not_in_vain(kills: Sequence[str]) -> None:
    """Refuse to do again what the system has ended twice, where it can only be done alike.

    A second attempt begins in a process that holds no other job's model, so it is worth one.

    Raises:
        OutOfMemory: Says what the attempts were at, and what would take less.
    """
    for what, advice in _WHILE.items():
        if kills.count(what) >= MOST_KILLS:
            raise OutOfMemory(
                f"the system ended {kills.count(what)} attempts of this job for want of memory "
                f"{advice}, or use a worker with more memory"
            )


def less_than(
    kills: Sequence[str], executor: Executor, *, largest: int
) -> tuple[Executor, int]:
    """Choose how to measure, so that it takes less than what the system has ended.

    Args:
        kills: What the attempts asked for that it has ended.
        executor: What is wanted.
        largest: Examples at once, if there is room.

    Returns:
        The executor and the examples at once.

    Raises:
        OutOfMemory: Nothing less is left; says what was tried, and what would take less.
    """
    one_at_a_time = {asked(each, 1) for each in (Executor.RESIDENT, Executor.STREAMED)}
    was_streamed = any(kill.startswith(Executor.STREAMED) for kill in kills)
    is_measured = any(kill not in _WHILE for kill in kills)
    if asked(Executor.STREAMED, 1) in kills:
        raise OutOfMemory(_tried(kills))
    if asked(Executor.RESIDENT, 1) in kills and executor is Executor.RESIDENT:
        raise OutOfMemory(f"{_tried(kills)}; or take executor=auto, which streams the model")
    if was_streamed or one_at_a_time.intersection(kills):
        return Executor.STREAMED, 1
    return executor, 1 if is_measured else largest


@contextmanager
def streamed_for_memory(kills: Sequence[str], executor: Executor) -> Iterator[None]:
    """Say what it was for that a model was to be streamed which cannot be.

    Raises:
        OutOfMemory: That was the last way to take less.
    """
    try:
        yield
    except UnsupportedModule as error:
        if asked(Executor.RESIDENT, 1) not in kills or executor is not Executor.STREAMED:
            raise
        raise OutOfMemory(f"{_tried(kills)}; it cannot be streamed: {error}") from error


def _tried(kills: Sequence[str]) -> str:
    measured = [kill for kill in kills if kill not in _WHILE]
    ways = (kill.split() for kill in measured)
    tried = ", ".join(f"{executor} by {size} examples at once" for executor, size in ways)
    return (
        f"the system ended {len(measured)} attempts of this job for want of memory ({tried}), and "
        "nothing smaller is left: cut examples shorter (calibration.max_length), run in a narrower "
        "dtype, or use a worker with more memory"
    )
