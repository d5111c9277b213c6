"""RQ's limit of time ends a job whatever the job's libraries catch."""

import time
from contextlib import suppress

import pytest
from rq.timeouts import HorseMonitorTimeoutException, JobTimeoutException

from fimlora_worker.errors import DeadlinePassed
from fimlora_worker.process.warm_worker import WarmWorker


def test_a_job_out_of_time_cannot_swallow_it():
    """A library that catches every exception does not keep the job alive, nor rename its end."""
    with pytest.raises(DeadlinePassed, match="more than 1 s"):  # noqa: SIM117, PT012
        with WarmWorker.death_penalty_class(1, JobTimeoutException):
            with suppress(Exception):
                time.sleep(5)
            raise AssertionError("the timeout was swallowed")


def test_the_parent_still_wakes_up_to_send_heartbeats():
    """RQ's own timeout of its wait for a child is the one that RQ catches."""
    with pytest.raises(HorseMonitorTimeoutException):  # noqa: SIM117
        with WarmWorker.death_penalty_class(1, HorseMonitorTimeoutException):
            time.sleep(5)
