"""The failure matrix in its short form: each row that is soon over, at one moment.

`make chaos` plays every row at ten moments, and asks for recovery within 30 s.
"""

import shutil
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from support.chaos.crowd import Client, Known
from support.chaos.faults import KILL, MATRIX, ONE, Fault
from support.chaos.stack import Stack, logs_of, running_stack, wait_until_ready
from support.chaos.trials import COUPLE, LARGE, SMALL, run_trial
from support.chaos.volume import Unavailable

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("matrix")]
SHORT = [fault for fault in MATRIX if fault.is_quick and fault.shape == ONE]
PATIENCE_S = 120.0  # a busy machine takes its time
LATEST_S = 0.6
LONGEST_S = 1.2


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """One stack for all rows: each leaves it as it was."""
    with running_stack(ONE) as running:
        yield running


@pytest.mark.parametrize("fault", SHORT, ids=lambda fault: fault.name)
def test_a_fault_loses_nothing_and_is_got_over(stack: Stack, fault: Fault):
    """No acknowledged job is lost or fails, and no client sees what could not be."""
    try:
        trial = run_trial(
            stack,
            fault,
            "suite",
            patience_s=PATIENCE_S,
            latest_s=LATEST_S,
            longest_s=LONGEST_S,
            crowd=COUPLE,
        )
    except Unavailable as reason:
        pytest.skip(str(reason))

    assert not trial.findings, logs_of(stack)
    assert trial.n_jobs >= 1


def test_a_request_that_is_repeated_after_all_data_is_lost_has_its_result_again(stack: Stack):
    """Valkey comes back with nothing: its jobs are unknown, and everything else goes on.

    One job had ended and one was being measured. Under their keys both are done anew, and what
    had ended comes to the same bytes.
    """
    known = Known("lost")
    client, bodies = Client("a", stack.urls, known), [known.new_body(n) for n in (SMALL, LARGE)]
    ended, cut_off = submit_all(client, bodies)
    digest = wait_for(stack, ended, "succeeded")["result"]["digest"]
    wait_for(stack, cut_off, "running")
    n_deaths = len(stack.deaths())

    lose_all_data(stack)
    wait_until_ready(stack)
    forgotten = [client.look(job_id) for job_id in (ended, cut_off) for _ in stack.urls]
    again = submit_all(client, bodies)
    records = [wait_for(stack, job_id, "succeeded") for job_id in again]
    client.close()

    assert forgotten == [""] * 4
    assert not {*again} & {ended, cut_off}
    assert records[0]["result"]["digest"] == digest
    assert not known.oddities
    assert stack.deaths()[n_deaths:] == []


def lose_all_data(stack: Stack) -> None:
    stack.valkey.end(KILL, hold=True)
    stack.valkey.process.wait()
    for path in stack.store_volume.folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    stack.valkey.start()


def submit_all(client: Client, bodies: list[dict[str, Any]]) -> list[str]:
    """Each under its key, as often as it takes."""
    jobs, deadline = list[str](), time.monotonic() + PATIENCE_S
    for number, body in enumerate(bodies):
        while not (job_id := client.submit(body, key=f"repeated-{number}")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        jobs.append(job_id)
    return jobs


def wait_for(stack: Stack, job_id: str, status: str) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        job: dict[str, Any] = httpx2.get(f"{stack.urls[0]}/jobs/{job_id}", timeout=30).json()
        if job["status"] == status:
            return job
        assert time.monotonic() < deadline, (job, logs_of(stack))
        time.sleep(0.1)
