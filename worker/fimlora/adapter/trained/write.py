"""Write matrices that were made of a trained adapter as an adapter that stock PEFT loads.

All modules get one effective scale, at which every alpha is an integer: where an adapter had
several, as with a rank pattern but no alpha pattern, or another one, as with rsLoRA, the rest of a
module's is put into its matrices. Nothing here imports torch.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fimlora.adapter.config import build_adapter_config, padded_rank
from fimlora.adapter.text_files import text_files
from fimlora.adapter.trained.read import (
    WEIGHTS,
    Limits,
    TrainedAdapter,
    TrainedModule,
    read_trained,
)
from fimlora.adapter.trained.tensors import (
    Floats,
    NewTensor,
    copied,
    new_floats,
    write_tensors,
)
from fimlora.adapter.trained.update import distances, total
from fimlora.errors import InvalidOption
from fimlora.plan import RankPlan
from fimlora.scaling import alpha_of

Factors = Callable[[str], tuple[Floats, Floats]]


@dataclass(frozen=True, slots=True)
class Written:
    """What an adapter became.

    Attributes:
        adapter: The new one, read back.
        error: Relative Frobenius norm of the change of all updates together, as stored.
        error_by_module: The same per module name.
    """

    adapter: TrainedAdapter
    error: float
    error_by_module: Mapping[str, float]


def common_scale(adapter: TrainedAdapter) -> int | float:
    """The one scale that all modules of a written adapter have.

    Args:
        adapter: The adapter.

    Returns:
        The scale of its modules, of the widest one if they differ; an integer where it is one.
    """
    widest = max(adapter.modules.values(), key=lambda module: module.rank)
    nearest = round(widest.scale)
    return nearest if math.isclose(widest.scale, nearest, rel_tol=1e-12) else widest.scale


def with_whole_alphas(plan: RankPlan, *, layout: str) -> RankPlan:
    """Give a plan the nearest scale at which every alpha is an integer, as some readers demand.

    Args:
        plan: The plan.
        layout: ``B`` or ``C``.

    Returns:
        The plan itself where its scale is one; else with the nearest integer, at least 1.
    """
    ranks = {rank for rank in plan.ranks.values() if rank}
    ranks |= {padded_rank(plan)} if layout == "C" else set()
    if all(type(alpha_of(rank, scale=plan.scale)) is int for rank in ranks):
        return plan
    return replace(plan, scale=max(1, round(plan.scale)))


def rescaling_sentence(adapter: TrainedAdapter, plan: RankPlan) -> str:
    """Say that the scale became another one, for integer alphas.

    Args:
        adapter: The adapter as it was.
        plan: The plan that it is written by.

    Returns:
        The sentence, behind a space; empty where the scale stayed.
    """
    before = common_scale(adapter)
    if plan.scale == before:
        return ""
    return (
        f" Its scale of {before:.6g} became {plan.scale} and the rest is in the matrices, as some "
        "readers take integer alphas only."
    )


def write_trained(
    adapter: TrainedAdapter,
    folder: Path,
    *,
    plan: RankPlan,
    changed: Collection[str],
    factors: Factors,
    layout: str,
    norms: Mapping[str, float],
    max_bytes: int | None = None,
) -> Written:
    """Write the files of an adapter that was made of another one, and read them back.

    Args:
        adapter: The other one.
        folder: An empty folder.
        plan: The rank of every module, and the scale.
        changed: Names of the modules whose matrices change; those of others are copied, with
            zeros at the end as far as their rank is another one.
        factors: Gives A and B of such a module at its new rank and scale.
        layout: ``B`` or ``C``.
        norms: Frobenius norm of each update, by module name.
        max_bytes: How large the file of weights may become.

    Returns:
        The adapter as read back, and how far its function is from the first one's.

    Raises:
        InvalidOption: The file would become larger than it may.
    """
    config = _config(adapter, plan, layout=layout)
    width = config["r"] if layout == "C" else None
    tensors = {key: copied(adapter.weights, entry) for key, entry in adapter.carried.items()}
    # A and B of a module are mostly written one after the other.
    last = lru_cache(maxsize=1)(factors)
    for name, module in adapter.modules.items():
        if rank := plan.ranks[name]:
            make = last if name in changed else adapter.matrices
            is_same = name not in changed and rank == module.rank
            tensors |= (
                {key: copied(adapter.weights, entry) for key, entry in module.factors}
                if is_same and (width or rank) == rank
                else _factor_tensors(module, rank, width or rank, make)
            )
    size = sum(tensor.n_bytes for tensor in tensors.values())
    if max_bytes is not None and size > max_bytes:
        raise InvalidOption(
            f"the adapter would have {size} bytes, over the limit of {max_bytes}; "
            "take layout B, or a smaller budget"
        )
    write_tensors(folder / WEIGHTS, tensors)
    for file, content in text_files(plan, config, layout=layout).items():
        (folder / file).write_bytes(content)
    again = read_trained(folder, limits=Limits())
    apart = distances(adapter, again)
    relative = {name: _ratio(apart[name], norms[name]) for name in apart}
    return Written(again, _ratio(total(apart), total(norms)), relative)


def _factor_tensors(
    module: TrainedModule, rank: int, width: int, make: Factors
) -> dict[str, NewTensor]:
    """A and B of a module, filled up with zeros to a width."""
    (key_a, entry_a), (key_b, entry_b) = module.factors
    target = module.target

    def a() -> Floats:
        return _resized(make(target.name)[0], (width, target.d_in), rank)

    def b() -> Floats:
        return _resized(make(target.name)[1].T, (width, target.d_out), rank).T

    return {
        key_a: new_floats((width, target.d_in), entry_a.dtype, a),
        key_b: new_floats((target.d_out, width), entry_b.dtype, b),
    }


def _resized(rows: Floats, shape: tuple[int, int], rank: int) -> Floats:
    wide = np.zeros(shape)
    wide[:rank] = rows[:rank]
    return wide


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _config(adapter: TrainedAdapter, plan: RankPlan, *, layout: str) -> dict[str, Any]:
    """The config of the new adapter: what the old one says of base model, task and training."""
    fields = adapter.config.fields
    keeps_all = all(plan.ranks.values()) and adapter.config.names_targets_plainly
    config = build_adapter_config(
        plan,
        base_model=fields.get("base_model_name_or_path") or "",
        task_type=fields.get("task_type"),
        layout=layout,
        target_modules=fields["target_modules"] if keeps_all else None,
        modules_to_save=fields.get("modules_to_save"),
    )
    config |= {
        name: fields[name]
        for name in ("lora_dropout", "bias", "base_model_name_or_path")
        if fields.get(name) is not None
    }
    return config | ({"revision": fields["revision"]} if fields.get("revision") else {})
