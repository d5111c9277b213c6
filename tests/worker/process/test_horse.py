"""The handle on the warm child, with a child that does nothing but answer."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fimlora_worker.process.horse import FAILED_STATUS, Horse
from fimlora_worker.process.messages import Order
from support.workers import PYTHONPATH, is_alive, wait_dead

TESTS = Path(__file__).parents[2]


class Interrupted(Exception):
    """What RQ's alarm raises."""


def order(what: str, execution_id: str = "e1") -> Order:
    return Order("rq:worker:w", "job_1-1", what, execution_id)


@pytest.fixture
def horse() -> Iterator[Horse]:
    environment = {**os.environ, "PYTHONPATH": f"{PYTHONPATH}{os.pathsep}{TESTS}"}
    horse = Horse(environment, module="support.fake_child")
    yield horse
    horse.kill()
    horse.close()


@pytest.fixture
def alarms() -> Iterator[None]:
    """SIGALRM every few milliseconds, raising wherever the main thread is."""

    def interrupt(number, frame):
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_an_answer_is_a_wait_status(horse: Horse):
    """0 when RQ recorded the end, exit code 1 when it could not; the child stays."""
    horse.give(order("answer", "e1"))
    assert horse.wait() == 0

    horse.give(order("fail", "e2"))
    assert horse.wait() == FAILED_STATUS
    assert os.waitstatus_to_exitcode(FAILED_STATUS) == 1
    assert horse.is_usable


def test_a_repeated_wait_gives_the_same_answer(horse: Horse):
    """RQ waits again after an alarm that came when the answer was already there."""
    horse.give(order("answer"))

    assert [horse.wait(), horse.wait()] == [0, 0]


@pytest.mark.parametrize("repeat", range(3))
def test_no_alarm_loses_an_answer(horse: Horse, alarms, repeat):
    """Interrupted hundreds of times in mid-read, the wait still ends with the answer."""
    horse.give(order("dribble"))
    interrupts = 0
    deadline = time.monotonic() + 20
    status = None
    while status is None:
        assert time.monotonic() < deadline
        with suppress(Interrupted):
            signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
            try:
                status = horse.wait()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        interrupts += status is None

    assert status == 0
    assert interrupts > 10


def test_a_child_that_exits_is_reported_as_it_ended(horse: Horse):
    """RQ sees the true wait status, and knows a crash from an answer."""
    horse.give(order("exit"))

    assert os.waitstatus_to_exitcode(horse.wait()) == 7
    assert not horse.is_usable


def test_a_killed_child_is_reported_with_its_signal(horse: Horse):
    """Killing works while an order is in flight, from another thread."""
    horse.give(order("hang"))
    killer = threading.Timer(0.2, horse.kill)
    killer.start()

    assert os.WTERMSIG(horse.wait()) == signal.SIGKILL
    killer.join()


def test_an_idle_child_is_not_killed(horse: Horse):
    """A stop that comes after the answer is too late to hit anybody."""
    horse.give(order("answer"))
    horse.wait()

    assert horse.kill() is False
    assert is_alive(horse.pid)


def test_an_order_to_a_dead_child_is_refused(horse: Horse):
    """The caller learns it from the pipe and can start another child."""
    os.kill(horse.pid, signal.SIGKILL)
    wait_dead(horse.pid)

    with pytest.raises(BrokenPipeError):
        horse.give(order("answer"))


def test_a_drain_request_while_the_child_starts_is_kept(horse: Horse):
    """The signal waits for its handler: it neither kills the new interpreter nor is lost."""
    horse.drain()
    horse.give(order("count drains"))

    assert horse.wait() == FAILED_STATUS  # one drain, sent as the answer's code


def test_a_retiring_child_takes_no_other_order(horse: Horse):
    """It said so with its last answer, which still counts."""
    horse.give(order("retire"))

    assert horse.wait() == 0
    assert not horse.is_usable


def test_a_closed_child_ends_by_itself(horse: Horse):
    """It has no more orders to wait for; closing twice is harmless."""
    horse.close()
    horse.close()

    assert not is_alive(horse.pid)


def test_silence_is_measured_from_the_last_sign_of_life(horse: Horse):
    """A hanging child grows ever more silent; an order starts the count anew."""
    horse.give(order("answer"))
    horse.wait()
    time.sleep(0.2)
    before = horse.silent_for_s()
    horse.give(order("hang"))

    assert before >= 0.2
    assert horse.silent_for_s() < 0.1


def test_a_child_that_does_not_take_its_order_is_told_from_one_that_works(horse: Horse):
    """One that hung while it was idle; a child that is still being started is none."""
    assert not horse.is_deaf
    horse.give(order("answer"))
    horse.wait()

    horse.give(order("work", "e2"))
    assert until(lambda: not horse.is_deaf)


def test_a_child_that_hung_while_it_was_idle_is_deaf(horse: Horse):
    """It has answered before, and says nothing of its order."""
    horse.give(order("answer"))
    horse.wait()
    horse.give(order("hang", "e2"))
    time.sleep(0.2)

    assert horse.is_deaf


def until(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


def test_what_a_child_prints_is_logged_also_its_last_words(horse: Horse, caplog):
    """With the job it was about, whoever in the process has written it."""
    caplog.set_level(logging.INFO)
    horse.give(order("print"))
    assert os.WTERMSIG(horse.wait()) == signal.SIGKILL
    horse.close()

    printed = [line for line in caplog.records if line.message == "output"]
    assert [line.text for line in printed] == ["from python", "from below \\xff"]
    assert {(line.job_id, line.attempt, line.child_pid) for line in printed} == {
        ("job_1", 1, horse.pid)
    }
