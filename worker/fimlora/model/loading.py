"""Load a model from its folder as streaming reads it.

Missing weights are drawn from a seed, and all are aligned: a matrix kernel may round otherwise
elsewhere.
"""

from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fimlora.errors import InvalidCheckpoint
from fimlora.model.checkpoint import Checkpoint
from fimlora.model.drawn import drawn_modules, is_left_out_of_files, put_drawn
from fimlora.model.weight_reader import ALIGNMENT, WeightReader, open_weights


def align(model: nn.Module) -> nn.Module:
    """Move weights that are not aligned; ``from_pretrained`` may leave them as the file has them.

    Args:
        model: A model on any device; it is changed in place.

    Returns:
        The model, with the same values.
    """
    for parameter in model.parameters():
        if parameter.data_ptr() % ALIGNMENT:
            parameter.data = parameter.data.clone()
    return model


def experts_per_token(config: Any) -> int:
    """Say how many experts of a mixture a token goes through.

    Returns:
        What the config says; 1 for a model that is no mixture.
    """
    return getattr(config, "num_experts_per_tok", None) or 1


@dataclass(frozen=True)
class Loaded:
    """A model in memory.

    Attributes:
        model: The model.
        missing: Names of the weights that its checkpoint lacks.
        drawn: Names of the modules that they belong to.
    """

    model: nn.Module
    missing: frozenset[str]
    drawn: frozenset[str]


def load(skeleton: nn.Module, folder: Path, *, seed: int, redraws: bool = False) -> Loaded:
    """Load a model to be what streaming reads: missing weights from the seed, and aligned.

    Args:
        skeleton: The model without its weights.
        folder: Its folder.
        seed: Seed of weights that the checkpoint lacks.
        redraws: Draw a head anew whose shape in the checkpoint is another.

    Returns:
        The model, in evaluation mode.
    """
    checkpoint = Checkpoint(folder)
    weights = open_weights(skeleton, checkpoint, seed=seed, redraws=redraws)
    if checkpoint.is_packed:
        missing = frozenset(weights.drawn)
        return Loaded(_filled(skeleton, weights), missing, drawn_modules(skeleton, missing))
    built: Any = skeleton
    with torch.random.fork_rng([]):
        model, report = type(built).from_pretrained(
            folder,
            config=built.config,
            dtype=built.dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            ignore_mismatched_sizes=redraws,
            output_loading_info=True,
        )
    _check_same(model, report, weights.drawn)
    put_drawn(model, weights.drawn)
    missing = frozenset(weights.drawn)
    return Loaded(align(model), missing, drawn_modules(model, missing))


def _filled(skeleton: nn.Module, weights: WeightReader) -> nn.Module:
    """A copy of a skeleton with its weights, as streaming would give it them."""
    model = deepcopy(skeleton)
    parameters = dict(model.named_parameters())
    for name, value in weights.read_whole(parameters, torch.device("cpu")).items():
        # In its place, as other modules may hold it, too.
        filled = nn.Parameter(value.clone(), requires_grad=False)
        torch.utils.swap_tensors(parameters[name], filled)
    return align(model)


def _check_same(model: nn.Module, report: Mapping[str, Any], drawn: Collection[str]) -> None:
    """See that transformers has missed the very weights that are drawn.

    Raises:
        InvalidCheckpoint: It has read the checkpoint in another way.
    """
    # A mismatch comes with both shapes, or by its name alone.
    other_shape = [k[0] if isinstance(k, tuple) else k for k in report["mismatched_keys"]]
    parameters = dict(model.named_parameters(remove_duplicate=False))
    missed = {name for name in (*report["missing_keys"], *other_shape) if name in parameters}
    unknown = {name for name in set(drawn) - missed if not is_left_out_of_files(model, name)}
    same = {id(parameters[name]) for name in missed}
    unknown = {name for name in unknown if id(parameters[name]) not in same}
    if odd := sorted((missed - set(drawn)) | unknown):
        raise InvalidCheckpoint(
            f"it is not clear whether the checkpoint has {odd[0]!r} of {type(model).__name__}: "
            "save the model with save_pretrained of the installed transformers"
        )
