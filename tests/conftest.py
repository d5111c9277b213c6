"""Fixtures that every test folder may use."""

import os

import pytest

# Before anything imports torch: two test processes share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

pytest_plugins = ["support.hub", "support.receiver", "support.s3", "support.valkey"]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a GPU test without a device, unless the machine promises to have one."""
    if item.get_closest_marker("gpu") is None:
        return
    import torch

    if not torch.cuda.is_available():
        if os.environ.get("FIMLORA_REQUIRE_GPU") == "1":
            pytest.fail("FIMLORA_REQUIRE_GPU=1, but there is no CUDA device")
        pytest.skip("needs a CUDA device")
