"""A calibration of files that are here, by the code of a job, without service and store."""

import json
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fimlora_contract.jobs import Progress
from fimlora_contract.models import hub_id_of
from fimlora_contract.requests import CalibrationRequest
from fimlora_jobs.datasets.folders import FolderError, content_files, model_files
from fimlora_worker.errors import WorkerError
from fimlora_worker.job.calibration import ADAPTER_FOLDER, AcceptedJob, calibrate
from fimlora_worker.job.failures import code_of, job_error
from fimlora_worker.job.progress import Reporter
from fimlora_worker.job.worker_process import WorkerProcess
from fimlora_worker.settings import Settings

JOB = "local"
UNFIT = re.compile(r"[^A-Za-z0-9._-]")


class UnusableInput(WorkerError):
    """A folder or a file that was given cannot be used."""

    code = "dataset_schema"


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for.

    Attributes:
        model: Folder of the base model.
        dataset: File or folder of rows.
        output: Folder to write.
        fields: Of the request, without model and dataset.
        columns: Columns by role.
        retain: File or folder of rows whose function is to be kept, for methods that ask for it.
    """

    model: Path
    dataset: Path
    output: Path
    fields: dict[str, Any]
    columns: dict[str, str]
    retain: Path | None = None


def _unheard(_progress: Progress) -> None:
    """Nobody reads along."""


@dataclass
class ToldReporter(Reporter):
    """Tells one who reads along how far it is; no record is there, and nobody cancels.

    Attributes:
        tell: Told of every step.
    """

    tell: Callable[[Progress], None] = _unheard

    def note_memory(self, asked: str) -> None:
        """Nothing: nobody tries again."""

    def _send(self, progress: Progress) -> None:
        self._reported, self._last = self.clock(), progress
        self.tell(progress)


def calibrate_here(
    asked: Asked, settings: Settings, tell: Callable[[Progress], None]
) -> dict[str, Any]:
    """Calibrate in the data folder of the settings, and move the adapter where it is wanted.

    Args:
        asked: What is asked for.
        settings: Of a worker with a data folder of its own.
        tell: Told how far it is.

    Returns:
        The rank map that was written.

    Raises:
        UnusableInput: The model's folder or the rows are not what they should be.
    """
    work = settings.data_dir
    process = WorkerProcess.open(settings)
    accepted = _accepted(asked, work, process)
    reporter = ToldReporter(
        process.store,  # which nothing asks
        JOB,
        1,
        is_draining=lambda: False,
        on_alive=lambda: None,
        deadline_s=float("inf"),
        tell=tell,
    )
    folder = work / "attempt"
    folder.mkdir()
    calibrate(accepted, process=process, reporter=reporter, folder=folder)
    made = folder / ADAPTER_FOLDER
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{asked.output.name}-", dir=asked.output.parent))
    try:
        shutil.copytree(made, part, dirs_exist_ok=True)
        asked.output.mkdir(exist_ok=True)
        for file in part.iterdir():
            file.replace(asked.output / file.name)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    found: dict[str, Any] = json.loads((asked.output / "rank_map.json").read_text())
    return found


def _accepted(asked: Asked, work: Path, process: WorkerProcess) -> AcceptedJob:
    """The request as a service would have accepted it, with all inputs registered by name.

    Raises:
        UnusableInput: The model's folder or the rows are not what they should be.
    """
    model = _register(work / "models", asked.model, name=asked.model.name)
    try:
        model_files(asked.model)
        rows = {
            role: _rows_of(path, work / "datasets", role, process)
            for role, path in (("dataset", asked.dataset), ("retain", asked.retain))
            if path is not None
        }
    except (FolderError, OSError) as error:
        raise UnusableInput(str(error)) from error
    columns = {"columns": asked.columns} if asked.columns else {}
    request = CalibrationRequest.model_validate(
        asked.fields
        | {"base_model": {"source": "local", "name": model}}
        | {
            role: {"source": "local", "name": known["name"]} | columns
            for role, known in rows.items()
        }
    )
    config = json.loads((asked.model / "config.json").read_text(encoding="utf-8"))
    architectures = config.get("architectures")
    base_model = {
        "source": "local",
        "name": model,
        "digest": process.digests.of_model(asked.model),
        "model_type": config.get("model_type"),
        "architecture": architectures[0] if architectures else None,
        "called": hub_id_of(asked.model.resolve()) or str(asked.model),
    }
    return AcceptedJob(request, {"base_model": base_model, **rows})


def _rows_of(path: Path, room: Path, role: str, process: WorkerProcess) -> dict[str, Any]:
    """What a service would know of rows that it has registered.

    Raises:
        FolderError: They are none.
    """
    # Two files in two folders may have one name.
    name = _register(room, path, name=path.stem if role == "dataset" else f"{path.stem}-{role}")
    files = content_files(room / name)
    return {
        "source": "local",
        "name": name,
        "digest": process.digests.of_files(files),
        "fields": None,
    }


def _register(room: Path, target: Path, *, name: str) -> str:
    """Name a thing after itself, as far as names go."""
    room.mkdir(exist_ok=True)
    name = UNFIT.sub("-", name).lstrip("-._")[:96] or "unnamed"
    (room / name).symlink_to(target.resolve())
    return name


def describe_failure(error: Exception) -> dict[str, Any]:
    """An error for its reader, who sits at this machine: paths are no secret here."""
    code = code_of(error)
    detail = job_error(error).detail if code == "internal" else str(error)
    return {"code": code, "detail": detail}
