"""Registered models by name, read again only when something in their folder has changed.

Reading the heads of a model's files takes longer than all else a request needs of the disk,
and operators rarely touch a model they have registered.
"""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock

from cachetools import LRUCache

from fimlora_contract.near_names import did_you_mean
from fimlora_jobs.data_folder import registered_names
from fimlora_jobs.datasets.folders import FolderDigests, FolderError
from fimlora_jobs.datasets.kept_digests import KeptDigests
from fimlora_jobs.models.base_model_name import base_model_name
from fimlora_service.errors import ModelNotFound, UnsupportedArchitecture
from fimlora_service.resolve.chat_templates import templates_in
from fimlora_service.resolve.model_checks import read_model
from fimlora_service.resolve.model_files import (
    ResolvedModel,
    describe_config,
    permission_errors,
)

MAX_MODELS = 16
# Name, file system, inode, size, times of change of each entry; None for a link to nowhere.
State = tuple[tuple[str, tuple[int, ...] | None], ...]


class LocalModels:
    """The models in a folder; safe to use from several threads.

    Args:
        models: Where each registered model has a folder.
        kept: Digests of their files that outlast this process.
    """

    def __init__(self, models: Path, kept: KeptDigests | None = None) -> None:
        self._models = models
        self._digests = FolderDigests(kept)
        self._lock = Lock()
        self._known: LRUCache[str, tuple[State, ResolvedModel]] = LRUCache(MAX_MODELS)

    def resolve(self, name: str) -> ResolvedModel:
        """Check a registered model and take its digest.

        Raises:
            ModelNotFound: No model is registered under that name, or none that may be read.
            UnsupportedArchitecture: It cannot be calibrated, as its files tell.
            UnsafeWeights: It has no sound safetensors weights.
        """
        with permission_errors(f"local model {name!r}"):
            return self._resolve(name)

    def _resolve(self, name: str) -> ResolvedModel:
        # Taken first: a change while the model is read shows at the next request.
        state = self._state(name)
        called = {"called": base_model_name(self._models, name)}
        with self._lock:
            known = self._known.get(name)
        is_read = known is not None and known[0] == state
        if known and is_read and known[1].reference.items() >= called.items():
            return known[1]
        model = known[1] if known and is_read else self._read(name)
        model = replace(model, reference=model.reference | called)
        with self._lock:
            self._known[name] = state, model
        return model

    def _state(self, name: str) -> State:
        folder = self._models / name
        try:
            with os.scandir(folder) as entries:
                return tuple(sorted((entry.name, _stamp(entry)) for entry in entries))
        except OSError as error:
            if folder.is_dir():
                raise
            raise ModelNotFound(self._why_missing(name)) from error

    def _why_missing(self, name: str) -> str:
        known = registered_names(self._models)
        if name not in known:
            there_is = f"registered models: {known}" if known else "no model is registered yet"
            hint = did_you_mean(name, known) or (
                "; `fimlora models add NAME FOLDER` registers one, on the hub it is namespace/name"
            )
            return f"no local model {name!r}; {there_is}{hint}"
        if (self._models / name).is_symlink():
            return f"local model {name!r} is a broken link: it leads to no folder any more"
        return f"local model {name!r} is a file, and a model is a folder"

    def _read(self, name: str) -> ResolvedModel:
        folder, where = self._models / name, f"local model {name!r}"
        config, shapes = read_model(folder, where=where)
        try:
            digest = self._digests.of_model(folder)
        except FolderError as error:
            raise UnsupportedArchitecture(str(error)) from error
        reference = {"source": "local", "name": name, "digest": digest}
        return ResolvedModel(
            reference | describe_config(config),
            config,
            shapes,
            chat_templates=partial(templates_in, folder),
        )


def _stamp(entry: "os.DirEntry[str]") -> tuple[int, ...] | None:
    try:
        found = entry.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
