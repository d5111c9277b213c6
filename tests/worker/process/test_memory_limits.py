"""Jobs under a memory limit, in a process that holds nothing else yet."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("memory_limit_cases.py")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads and limits memory as Linux does"),
]


@pytest.fixture(scope="module")
def report() -> str:
    """What the cases ended with; they share a process, as importing takes longest."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    # Weights go back to the system when they are freed, however the heap happens to lie.
    environment |= {"MALLOC_MMAP_THRESHOLD_": str(2**17), "OMP_NUM_THREADS": "1"}
    options = ["-q", "-rA", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]

    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, CASES],
        capture_output=True,
        text=True,
        env=environment,
        timeout=240,
        check=False,
    )
    return done.stdout


@pytest.mark.parametrize(
    "case",
    [
        "test_a_model_that_does_not_fit_is_streamed_unless_it_must_not_be",
        "test_a_model_that_only_seemed_to_fit_is_streamed_after_all",
    ],
)
def test_a_job_keeps_to_the_memory_there_is(report, case):
    """The case has passed; a case that is not there fails too."""
    passed = [line for line in report.splitlines() if line.startswith("PASSED ")]

    assert any(line.endswith(f"::{case}") for line in passed), report[-4000:]
