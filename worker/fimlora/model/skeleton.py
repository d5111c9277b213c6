"""Build a model without its weights: parameters on the meta device, buffers real.

Buffers that no checkpoint holds (rotary frequencies, position ids) are computed when a
model is built, so they must exist; parameters must not, they are what does not fit. All begin
on the meta device, and buffers are computed afterwards, as ``from_pretrained`` does it.

Not by accelerate's empty weights, which part parameters that a model ties: an embedding that is
the head, too, must stay one parameter, to be read once.
"""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from fimlora.errors import UnsupportedModule
from fimlora.model.drawn import drawing_from, mark_initialised
from fimlora.model.experts.grouped import take_loop_if_needed


def build_skeleton(
    folder: Path,
    *,
    model_class: Any = None,
    config: Any = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Build the model of a folder without reading its weights.

    Args:
        folder: A folder as ``save_pretrained`` writes it.
        model_class: A model class or an auto class of transformers; ``None`` for the one
            that the config names.
        config: The config, if it is not the folder's own.
        dtype: Dtype of the weights; ``None`` for the config's.

    Returns:
        The model in evaluation mode, with every parameter on the meta device.

    Raises:
        UnsupportedModule: The config names no class of transformers.
    """  # noqa: DOC502 - a helper raises
    config = deepcopy(config) or transformers.AutoConfig.from_pretrained(
        folder, trust_remote_code=False, local_files_only=True
    )
    # Packed weights are read as what they stand for.
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    model_class = model_class or _named_class(config, folder)
    build = getattr(model_class, "from_config", None) or model_class._from_config  # noqa: SLF001
    wanted = dtype or getattr(config, "dtype", None) or torch.float32
    options = {"dtype": getattr(torch, wanted) if isinstance(wanted, str) else wanted}
    with torch.device("meta"):  # for this thread only
        model: nn.Module = build(config, **options)
    _widen_by_plan(model, options["dtype"])
    _compute_buffers(model)
    _forget_caches(model)
    take_loop_if_needed(model)
    return model.requires_grad_(False).eval()


def _named_class(config: Any, folder: Path) -> Any:
    names = config.architectures or []
    found = [getattr(transformers, name) for name in names if hasattr(transformers, name)]
    if not found:
        raise UnsupportedModule(
            f"the config of {folder} names no model class of transformers ({names}); "
            "give model_class"
        )
    return found[0]


def _compute_buffers(model: nn.Module) -> None:
    """Make the buffers real, with the values that a loaded model has before its weights."""
    mark_initialised(model)
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for name, buffer in module._buffers.items():  # noqa: SLF001 - to put others there
            if buffer is not None and buffer.is_meta:
                real = made.setdefault(id(buffer), torch.zeros_like(buffer, device="cpu"))
                module._buffers[name] = real  # noqa: SLF001
    with torch.no_grad(), drawing_from(torch.Generator().manual_seed(0)):
        _initialise(model, model)


def _initialise(module: nn.Module, ruling: Any) -> None:
    """Initialise what is in a module, then the module itself, as transformers does."""
    for child in module.children():
        _initialise(child, child if isinstance(child, PreTrainedModel) else ruling)
    ruling._init_weights(module)  # noqa: SLF001 - no public way without patches


def _forget_caches(model: nn.Module) -> None:
    """Keep no keys and values of past tokens; not every model takes it as an argument."""
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if hasattr(config, "use_cache"):
            config.use_cache = False


def _widen_by_plan(model: Any, dtype: torch.dtype) -> None:
    """Keep in float32 what the architecture says must not be narrower."""
    plan = model._get_dtype_plan(dtype)  # noqa: SLF001 - what from_pretrained itself asks
    if not plan:
        return
    from transformers.core_model_loading import build_glob_alternation

    expression, group_of, _ = build_glob_alternation(list(plan))
    for name, parameter in model.named_parameters():
        if match := expression.search(name):
            # In place: another module may be tied to it.
            parameter.data = parameter.data.to(plan[group_of[match.lastgroup or ""]])
