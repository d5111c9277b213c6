"""One calibration here and now, without service and store: ``python -m fimlora_worker.local``.

Standard input says in JSON what is asked for; standard output has a line of JSON for each step
of progress and a last one for the outcome. What is measured, and how it is written, is the code
of a job: the same inputs by the same names make the same files.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, TextIO

from fimlora_contract.environment import SettingsError
from fimlora_contract.jobs import Progress
from fimlora_worker.logs import configure_logging
from fimlora_worker.process.imports import uncollected_imports
from fimlora_worker.process.threads import thread_environment
from fimlora_worker.settings import Settings

NOWHERE = "unix:///nonexistent"  # of a store: nothing of a calibration asks one


class Teller:
    """What a job tells its record, as lines of JSON."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def tell(self, kind: str, content: Any) -> None:
        """Write a line, at once."""
        self._out.write(json.dumps({kind: content}) + "\n")
        self._out.flush()

    def progress(self, progress: Progress) -> None:
        """Tell how far it is."""
        self.tell("progress", progress.model_dump(mode="json"))


def main() -> int:
    """Calibrate what standard input says; the exit status says whether it went well."""
    teller = Teller(sys.stdout)
    sys.stdout = sys.stderr  # what libraries print is no line of ours
    said = json.loads(sys.stdin.read())
    with tempfile.TemporaryDirectory(prefix="fimlora-") as work:
        try:
            settings = Settings.read(
                data_dir=Path(work), redis_url=NOWHERE, artifacts_url="", log_level="ERROR"
            )
        except SettingsError as error:
            teller.tell("error", {"code": "invalid_settings", "detail": str(error)})
            return os.EX_CONFIG
        configure_logging(settings, process="worker")
        # Before torch is loaded, which reads it once.
        os.environ.update(thread_environment(settings.torch_threads, os.environ))
        return _calibrate(said, settings, teller)


def _calibrate(said: dict[str, Any], settings: Settings, teller: Teller) -> int:
    with uncollected_imports():
        from fimlora_worker.job.alone import Asked, calibrate_here, describe_failure

    asked = Asked(
        model=Path(said["model"]),
        dataset=Path(said["dataset"]),
        output=Path(said["output"]),
        fields=said["fields"],
        columns=said["columns"],
        retain=Path(said["retain"]) if said.get("retain") else None,
    )
    try:
        teller.tell("rank_map", calibrate_here(asked, settings, teller.progress))
    except Exception as error:
        teller.tell("error", describe_failure(error))
        return 1
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
