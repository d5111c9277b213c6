"""What the service imports before its first answer, and what it makes up for afterwards."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# A tenth of a second or more each, and not needed by most requests.
LATER = ("numpy", "pyarrow", "huggingface_hub", "httpx2", "fsspec")


def run(code: str) -> None:
    places = (str(ROOT / p) for p in ("clients/python", "service", "worker"))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)


def test_what_few_requests_need_is_not_imported_before_the_first_answer():
    """It would be more than half of the start."""
    run(f"""
import sys
from fimlora_service.serving import create_app, serve
create_app()
early = [name for name in {LATER} if name in sys.modules]
sys.exit(", ".join(early) or 0)
""")


def test_after_the_start_the_rest_is_imported_and_garbage_collected_again():
    """No request pays for an import later, and what was there is not searched again."""
    run(f"""
import gc, sys
gc.disable()
from fimlora_service.serving import warm_up
warm_up()
missing = [name for name in {LATER[:-1]} if name not in sys.modules]
assert not missing, missing
assert "torch" not in sys.modules
assert gc.isenabled()
assert gc.get_freeze_count() > 10_000
""")


def test_a_library_that_cannot_be_imported_leaves_the_collector_on():
    """The request that needs it says what is missing."""
    run("""
import gc, sys
gc.disable()
from fimlora_service.serving import warm_up
sys.modules["huggingface_hub"] = None
warm_up()
assert gc.isenabled()
""")
