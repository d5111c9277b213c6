"""What the service imports before its first answer, and what it makes up for afterwards."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# A tenth of a second or more each, and not needed by most requests.
LATER = ("numpy", "pyarrow", "huggingface_hub", "httpx2", "fsspec")


def run(code: str) -> str:
    """What a fresh process prints."""
    places = (str(ROOT / p) for p in ("clients/python", "service", "worker"))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        check=True,
        timeout=60,
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.stdout.strip()


def test_what_few_requests_need_is_not_imported_before_the_first_answer():
    """It would be more than half of the start."""
    early = run(f"""
import sys
from fimlora_service.server import create_app
create_app()
print(*(name for name in {LATER} if name in sys.modules))
""")

    assert early == ""


def test_the_service_never_loads_torch():
    """Starting stays fast and the image small."""
    heavy = {"torch", "transformers", "peft", "datasets", "fimlora_worker"}

    loaded = run(f"import sys, fimlora_service.app; print(*({heavy} & set(sys.modules)))")

    assert loaded == ""


def test_after_the_start_the_rest_is_imported_and_garbage_collected_again():
    """No request pays for an import later, and what was there is not searched again."""
    missing, has_torch, is_collecting, n_frozen = run(f"""
import gc, sys
gc.disable()
from fimlora_service.server import warm_up
warm_up()
print([name for name in {LATER[:-1]} if name not in sys.modules], end=";")
print("torch" in sys.modules, gc.isenabled(), gc.get_freeze_count(), sep=";")
""").split(";")

    assert (missing, has_torch, is_collecting) == ("[]", "False", "True")
    assert int(n_frozen) > 10_000


def test_a_library_that_cannot_be_imported_leaves_the_collector_on():
    """The request that needs it says what is missing."""
    is_collecting = run("""
import gc, sys
gc.disable()
from fimlora_service.server import warm_up
sys.modules["huggingface_hub"] = None
warm_up()
print(gc.isenabled())
""")

    assert is_collecting == "True"
