"""The model of an adapter that is written again: its skeleton, where its files are still here.

Nothing is downloaded for it and no weight is read. Without it an adapter is written as the job
before it had its targets, which were proved then.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fimlora.errors import FimloraError
from fimlora_worker.errors import WorkerError
from fimlora_worker.inputs.base_model import BaseModel
from fimlora_worker.inputs.heads import TASK_TYPES, ModelRequest
from fimlora_worker.inputs.models import find_model, load_tokenizer, read_config
from fimlora_worker.job.worker_process import WorkerProcess

log = logging.getLogger(__name__)


def known_model(
    reference: Mapping[str, Any], task_type: str, process: WorkerProcess
) -> BaseModel | None:
    """The base model that an earlier job had, if its files are here and can be built from.

    Args:
        reference: What the job's model resolved to.
        task_type: PEFT's word for the adapter's task.
        process: Caches and settings of this process.
    """
    task = next(task for task, kind in TASK_TYPES.items() if kind == task_type)
    try:
        folder = _find(reference, process)
        config, _ = process.readers.get(
            str(reference["digest"]),
            size=1,
            load=lambda: (read_config(folder), load_tokenizer(folder)),
        )
        request = ModelRequest(
            digest=str(reference["digest"]),
            task=task,
            dtype="float32",
            device="cpu",
            # How many does not matter: a head is no target.
            n_outputs=2 if task == "sequence_classification" else None,
        )
        model = BaseModel(folder, config, request, None, process.models)
        model.outline()  # or it cannot be built
    except (WorkerError, FimloraError, OSError) as error:
        log.info("model.not_here", extra={"digest": reference["digest"], "error": str(error)})
        return None
    return model


def _find(reference: Mapping[str, Any], process: WorkerProcess) -> Path:
    if reference["source"] != "hub":
        return find_model(reference, process.settings, process.digests)
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            str(reference["id"]),
            revision=str(reference["revision"]),
            cache_dir=process.settings.hub_dir / "models",
            local_files_only=True,
        )
    ).absolute()
