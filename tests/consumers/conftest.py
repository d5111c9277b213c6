"""Tests of the tools that read what fimlora exports, each in an environment of its own.

These tools pin other versions of PEFT and transformers than fimlora is developed with, so
that one environment cannot hold them all. ``make consumers`` makes one for each and names
it in ``FIMLORA_CONSUMER``; there, what is missing is a failure.
"""

import os

import pytest

from support.consumers import Planned, planned_llama


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs another environment than this one."""
    marker = item.get_closest_marker("consumer")
    if marker is None or os.environ.get("FIMLORA_CONSUMER") == marker.args[0]:
        return
    pytest.skip(f"`make consumers` makes the environment of {marker.args[0]}")


@pytest.fixture
def llama(tmp_path, monkeypatch) -> Planned:
    """A planned model; the tool stands where the exports say ``./adapter``."""
    monkeypatch.chdir(tmp_path)
    return planned_llama(tmp_path)
