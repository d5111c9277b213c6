"""Jobs under a memory limit, each case in a process that holds nothing else yet."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("memory_limit_cases.py")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads and limits memory as Linux does")
@pytest.mark.parametrize(
    "case",
    [
        "test_a_model_that_does_not_fit_is_streamed_unless_it_must_not_be",
        "test_a_model_that_only_seemed_to_fit_is_streamed_after_all",
    ],
)
def test_a_job_keeps_to_the_memory_there_is(case):
    """The case passes by itself; a case that is not there fails too."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    # Weights go back to the system when they are freed, however the heap happens to lie.
    environment |= {"MALLOC_MMAP_THRESHOLD_": str(2**17), "OMP_NUM_THREADS": "1"}

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{CASES}::{case}"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-4000:]
    assert "1 passed" in done.stdout
