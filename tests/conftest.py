"""Fixtures that every test folder may use, and the engine's annotations checked as it runs."""

import gc
import os
from pathlib import Path

import pytest
from beartype import BeartypeConf, BeartypeDecorPlace
from beartype.claw import beartype_package
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

# Importing makes much and frees little; looking for garbage meanwhile takes a seventh of the time.
gc.disable()

# Before anything imports torch: two test processes share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Before anything imports the engine. Checking shapes binds the arguments of every call, also
# where no annotation has a shape: modules without shapes have their types checked only.
ENGINE = Path(__file__).parents[1] / "worker" / "fimlora"
SHAPED = [
    ".".join(file.relative_to(ENGINE.parent).with_suffix("").parts)
    for file in ENGINE.rglob("*.py")
    if "from fimlora.shapes import" in file.read_text()
]
install_import_hook(SHAPED, "beartype.beartype")
CHECKS = BeartypeConf(claw_is_pep526=False, claw_decor_place_func=BeartypeDecorPlace.FIRST)
beartype_package("fimlora", conf=CHECKS)

# How fast examples are made says how busy the machine is, and nothing of what is tested.
settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("untimed")

pytest_plugins = ["support.hub", "support.receiver", "support.s3", "support.valkey"]


def pytest_collection_finish() -> None:
    """Look for garbage from now on, and never among what is imported by now: all of it stays."""
    gc.freeze()
    gc.enable()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests without the device or browser they need, unless the machine promises it."""
    if item.get_closest_marker("browser"):
        from support.browser import require_browser

        require_browser()
    if item.get_closest_marker("gpu") is None:
        return
    import torch

    if not torch.cuda.is_available():
        if os.environ.get("FIMLORA_REQUIRE_GPU") == "1":
            pytest.fail("FIMLORA_REQUIRE_GPU=1, but there is no CUDA device")
        pytest.skip("needs a CUDA device")
