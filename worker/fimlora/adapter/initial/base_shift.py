"""Take the initial update of an adapter off the base model it starts from, and put it back.

Symbols: ``W`` a base weight, s the plan's scale, ``A`` and ``B`` the initial weights in a folder.

Initial weights that are not zero let the model begin as it was only on ``W - s B A``. The model
trains on that, and whoever uses what was trained needs the same: a base model is changed here
and nowhere else, when somebody asks for it.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fimlora.adapter.config import WRAPPER_PREFIX
from fimlora.adapter.initial.carried import TRUNCATED
from fimlora.adapter.initial.directions import adapted
from fimlora.adapter.initial.registry import INITIAL
from fimlora.adapter.read import load_plan
from fimlora.errors import InvalidAdapter, InvalidOption, UnsupportedModule
from fimlora.model.targets import base_model_of, locate
from fimlora.plan import RankPlan, TargetModule


def shift_base(model: nn.Module, folder: str | Path, *, undo: bool = False) -> None:
    """Make the weights of a loaded base model ``W - s B A``, for an adapter that needs it.

    Sums are made in float64 and rounded once to the dtype of the weight, so undoing it gives the
    weights back to that rounding. Nothing tells whether it was done before: call it once.

    Args:
        model: The base model, or a PEFT model around it.
        folder: The adapter folder as it was written, with its *initial* weights; what was trained
            from them must lie elsewhere.
        undo: Put the update back: ``W + s B A``.

    Raises:
        InvalidOption: The adapter starts from the base model as it is, does not say what it
            starts from, or was cut.
        InvalidAdapter: The folder lacks a tensor of its plan.
        UnsupportedModule: A weight is packed, or shared with another module.
    """  # noqa: DOC502 - the helpers raise
    plan, folder = load_plan(folder), Path(folder)
    _check_initial(plan, folder)
    # All that can fail happens before anything is changed.
    changes = [*_changes(base_model_of(model), plan, folder / "adapter_model.safetensors")]
    sign = 1 if undo else -1
    with torch.no_grad():
        for weight, update in changes:
            weight.copy_(weight.double() + sign * update.to(weight.device))


def _check_initial(plan: RankPlan, folder: Path) -> None:
    """See that the weights in a folder are initial ones that need another base model.

    Raises:
        InvalidOption: They are not, or that is unknown.
    """
    initial = plan.provenance.get(INITIAL)
    if initial is None:
        raise InvalidOption(
            f"the initial weights of the adapter in {folder} are unknown: its rank map states "
            "none, as that of kaiming, which need no other base model, or of an adapter made of "
            "one without a rank map; give the folder that was written before training"
        )
    if not initial.get("changes_base"):
        raise InvalidOption(
            f"the adapter in {folder} was written with initial weights "
            f"{initial.get('name')}, which need no other base model"
        )
    if TRUNCATED in plan.provenance:
        raise InvalidOption(
            f"the adapter in {folder} was cut, so that it no more holds the initial weights that "
            "are to come off the base model; give the folder that was written before training"
        )


def _changes(model: nn.Module, plan: RankPlan, file: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """Weights and their updates in float64, as they are stored."""
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise InvalidAdapter(f"cannot read initial weights from {file}: {error}") from error
    holders: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    for module, _ in adapted(plan):
        key = f"{WRAPPER_PREFIX}{module.name}.lora_"
        A, B = (tensors.get(f"{key}{letter}.weight") for letter in "AB")
        if A is None or B is None:
            raise InvalidAdapter(f"{file} holds no initial weights of {module.name!r}")
        update = plan.scale_of(module.name) * B.double() @ A.double()
        weight = _weight_of(model, module, holders)
        yield weight, update.mT if module.fan_in_fan_out else update


def _weight_of(model: nn.Module, module: TargetModule, holders: dict[int, int]) -> Tensor:
    """The weight of a target module, if it can be changed without changing anything else."""
    found = locate(model, module)
    weight = found.weight
    shape = (module.d_out, module.d_in)
    wanted = shape[::-1] if module.fan_in_fan_out else shape
    if (
        not isinstance(weight, Tensor)
        or weight.shape != wanted
        or not weight.is_floating_point()
    ):
        raise UnsupportedModule(
            f"the weight of {module.name!r} is packed: it cannot be changed"
        )
    if holders.get(id(weight), 1) > 1:
        raise UnsupportedModule(
            f"the weight of {module.name!r} is shared with another module, which would change too"
        )
    return weight
