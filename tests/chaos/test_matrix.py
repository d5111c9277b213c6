"""The failure matrix in its short form: each row that is soon over, at one moment.

`make chaos` plays every row at ten moments, and asks for recovery within 30 s.
"""

from collections.abc import Iterator

import pytest

from support.chaos.faults import MATRIX, ONE, Fault
from support.chaos.stack import Stack, logs_of, running_stack
from support.chaos.trials import COUPLE, run_trial
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
