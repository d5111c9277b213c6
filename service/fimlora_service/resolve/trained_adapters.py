"""Trained adapters by id or name: where they lie, their digest, and whether they fit a model."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fimlora_contract.adapters import ADAPTER_ID
from fimlora_contract.near_names import did_you_mean
from fimlora_jobs.data_folder import DataFolder, registered_names
from fimlora_jobs.datasets.folders import FolderDigests
from fimlora_jobs.datasets.kept_digests import KeptDigests
from fimlora_jobs.trained_adapters import adapter_files
from fimlora_service.datasets.owners import owner_of
from fimlora_service.errors import AdapterInvalid, AdapterNotFound
from fimlora_service.keys.principal import EVERYBODY, Principal
from fimlora_service.resolve.model_files import Shapes


@dataclass(frozen=True, slots=True)
class FoundAdapter:
    """An adapter.

    Attributes:
        id: Its id, or its registered name.
        folder: Where it lies.
        is_kept: Whether it was uploaded or made here; else the operator registered it.
    """

    id: str
    folder: Path
    is_kept: bool


def find_adapter(id_: str, data_folder: DataFolder, *, principal: Principal) -> FoundAdapter:
    """Find an adapter, if it is there for somebody.

    Raises:
        AdapterNotFound: There is none of that id or name.
    """
    if re.fullmatch(ADAPTER_ID, id_):
        folder, is_kept = data_folder.uploads / id_, True
        if not principal.sees(owner_of(folder)):
            raise AdapterNotFound(f"no adapter {id_!r}")
    elif id_ in (known := registered_names(data_folder.adapters)):
        folder, is_kept = data_folder.adapters / id_, False
    else:
        raise AdapterNotFound(
            f"no adapter {id_!r:.100}; registered adapters: {known}{did_you_mean(id_, known)}"
        )
    if not folder.is_dir():
        raise AdapterNotFound(f"no adapter {id_!r}")
    return FoundAdapter(id_, folder, is_kept)


@dataclass(frozen=True, slots=True)
class ResolvedAdapter:
    """An adapter that a request measures at, by content.

    Attributes:
        reference: What goes on the job's record.
        ranks: Rank per module.
    """

    reference: dict[str, Any]
    ranks: Mapping[str, int]


class TrainedAdapters:
    """Adapters that requests measure at.

    Args:
        data_folder: Where they are.
    """

    def __init__(self, data_folder: DataFolder) -> None:
        self._data_folder = data_folder
        self._digests = FolderDigests(KeptDigests(data_folder.digests))

    def resolve(
        self, name: str, *, shapes: Shapes | None, principal: Principal = EVERYBODY
    ) -> ResolvedAdapter:
        """Pin an adapter to content, and see that it can be one for a model.

        Args:
            name: Its id or registered name.
            shapes: Of the model's weights as its checkpoint names them, where they are known.
            principal: Who asks.

        Returns:
            The adapter.

        Raises:
            AdapterNotFound: There is none.
            AdapterInvalid: It is none that can be used, or is for another model.
        """
        from fimlora_service.resolve.adapter_reading import read_head

        found = find_adapter(name, self._data_folder, principal=principal)
        trained = read_head(found.folder)
        sides = {n: (m.target.d_out, m.target.d_in) for n, m in trained.modules.items()}
        if shapes is not None:
            check_fits(sides, shapes)
        digest = self._digests.of_files(adapter_files(found.folder))
        ranks = {n: module.rank for n, module in trained.modules.items()}
        return ResolvedAdapter({"name": name, "digest": digest}, ranks)


def check_fits(sides: Mapping[str, tuple[int, int]], shapes: Shapes) -> None:
    """Refuse an adapter that is certainly for another model.

    A checkpoint may lack the first part of the loaded model's names, or have another one; the
    worker sees the rest.

    Raises:
        AdapterInvalid: A matrix has another shape, or no module has a name of the model's.
    """
    from fimlora.adapter.config import dotted_ends

    matrices = {
        name.removesuffix(".weight"): shape
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) == 2
    }
    by_end: dict[str, list[str]] = {}
    for name in matrices:
        for end in dotted_ends(name):
            by_end.setdefault(end, []).append(name)
    n_known = 0
    for name, (d_out, d_in) in sides.items():
        known = [end for end in dotted_ends(name) if end in matrices] or by_end.get(name, [])
        n_known += bool(known)
        for other in known:
            if tuple(matrices[other]) not in {(d_out, d_in), (d_in, d_out)}:
                shape = " x ".join(map(str, matrices[other]))
                raise AdapterInvalid(
                    f"the adapter is for a {name} of {d_out} x {d_in}, and that of the base model "
                    f"is {shape}; give the base model that it was trained on"
                )
    if sides and matrices and not n_known:
        raise AdapterInvalid(
            f"none of the adapter's modules, such as {next(iter(sides))}, is one of the base "
            "model's; give the base model that it was trained on"
        )
