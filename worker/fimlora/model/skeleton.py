"""Build a model without its weights: parameters on the meta device, buffers real.

Buffers that no checkpoint holds (rotary frequencies, position ids) are computed when a
model is built, so they must exist; parameters must not, they are what does not fit.

Not by accelerate's empty weights, which part parameters that a model ties: an embedding that is
the head, too, must stay one parameter, to be read once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn import Parameter

from fimlora.errors import UnsupportedModule


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
        UnsupportedModule: The weights are quantised.
    """
    config = deepcopy(config) or transformers.AutoConfig.from_pretrained(
        folder, local_files_only=True
    )
    if getattr(config, "quantization_config", None) is not None:
        raise UnsupportedModule(f"{folder} holds quantised weights, which cannot be streamed")
    model_class = model_class or _named_class(config, folder)
    build = getattr(model_class, "from_config", None) or model_class._from_config  # noqa: SLF001
    wanted = dtype or getattr(config, "dtype", None) or torch.float32
    options = {"dtype": getattr(torch, wanted) if isinstance(wanted, str) else wanted}
    with torch.random.fork_rng([]), _parameters_on_meta():
        model: nn.Module = build(config, **options)
    _widen_by_plan(model, options["dtype"])
    _forget_caches(model)
    return model.eval()


def _named_class(config: Any, folder: Path) -> Any:
    names = config.architectures or []
    found = [getattr(transformers, name) for name in names if hasattr(transformers, name)]
    if not found:
        raise UnsupportedModule(
            f"the config of {folder} names no model class of transformers ({names}); "
            "give model_class"
        )
    return found[0]


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Put every parameter on the meta device, at the latest when a module takes it.

    The large ones begin there: memory that one weight after the other takes and gives back
    can leave the heap in pieces too small for the next, and a limited process without any.
    """
    register = nn.Module.register_parameter
    begin: dict[Any, Any] = {kind: kind.__init__ for kind in (nn.Linear, nn.Embedding)}

    def beginning_on_meta(kind: Any) -> Callable[..., None]:
        def init(module: nn.Module, *args: Any, **options: Any) -> None:
            begin[kind](module, *args, **{"device": "meta", **options})

        return init

    def register_on_meta(module: nn.Module, name: str, parameter: Parameter | None) -> None:
        if parameter is not None and parameter.device.type != "meta":  # else it may be tied
            parameter = Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, parameter)

    nn.Module.register_parameter = register_on_meta  # type: ignore[assignment, method-assign]
    for kind in begin:
        kind.__init__ = beginning_on_meta(kind)
    try:
        yield
    finally:
        for kind, init in begin.items():
            kind.__init__ = init
        nn.Module.register_parameter = register  # type: ignore[method-assign]


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
    for name, parameter in list(model.named_parameters()):
        if match := expression.search(name):
            owner, _, leaf = name.rpartition(".")
            wider = parameter.detach().to(plan[group_of[match.lastgroup or ""]])
            setattr(model.get_submodule(owner), leaf, Parameter(wider, requires_grad=False))


def initialise_missing(model: nn.Module, names: set[str], *, seed: int) -> None:
    """Give the weights that no checkpoint holds the values ``from_pretrained`` would.

    Args:
        model: A skeleton.
        names: Names of those parameters, such as a fresh head's.
        seed: Seed of their random values; the random state outside is left alone.
    """
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in names:
            owner, _, leaf = name.rpartition(".")
            empty = torch.empty_like(parameter, device="cpu")
            setattr(model.get_submodule(owner), leaf, Parameter(empty, requires_grad=False))
        else:
            parameter._is_hf_initialized = True  # type: ignore[attr-defined]  # noqa: SLF001
    for name, module in model.named_modules():
        if any(missing.startswith(f"{name}.") or not name for missing in names):
            module._is_hf_initialized = False  # noqa: SLF001
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        model.initialize_weights()  # type: ignore[operator]
