"""Weights that a checkpoint lacks, such as a new head's: each is drawn by itself.

Its values are those that transformers initialises it with, from the seed and its name alone.
Loading a whole model draws them too, but one after the other, behind whatever else takes a
random number: then they depend on what is loaded, and how.
"""

import hashlib
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from fimlora.errors import InvalidCheckpoint

_IN_PLACE = (
    "bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_", "normal_", "random_",
    "uniform_",
)  # fmt: skip
_FRESH = ("bernoulli", "multinomial", "normal", "rand", "randint", "randn", "randperm")
_INITIALISERS = (
    "kaiming_normal_", "kaiming_uniform_", "normal_", "orthogonal_", "sparse_", "trunc_normal_",
    "uniform_", "xavier_normal_", "xavier_uniform_",
)  # fmt: skip
_RANDOM = {
    *(getattr(Tensor, name) for name in _IN_PLACE),
    *(getattr(torch, name) for name in _FRESH),
    *(getattr(nn.init, name) for name in _INITIALISERS),
}


class drawing_from(TorchFunctionMode):  # noqa: N801 - reads as the context it is
    """Let what draws on this thread draw from one generator, and not from torch's own.

    Args:
        generator: The generator, on the CPU.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self._generator = generator

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run a function of torch, with the generator if it takes one."""
        options = dict(kwargs or {})
        if func in _RANDOM and options.get("generator") is None:
            tensor = args[0] if args else options.get("tensor")
            if not (isinstance(tensor, Tensor) and tensor.is_meta):
                options["generator"] = self._generator
        return func(*args, **options)


def is_left_out_of_files(model: nn.Module, name: str) -> bool:
    """Say whether transformers itself leaves a weight out, because it can be computed.

    Args:
        model: The model.
        name: Name of the weight.

    Returns:
        Whether loading does not miss it.
    """
    patterns: Iterable[str] = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    return any(re.search(pattern, name) for pattern in patterns)


def drawn_modules(model: nn.Module, missing: Iterable[str]) -> frozenset[str]:
    """Name the modules that are others at every load.

    Args:
        model: The model.
        missing: Names of the weights that its checkpoint lacks.

    Returns:
        Names of the modules that own them.
    """
    return frozenset(
        name.rpartition(".")[0] for name in missing if not is_left_out_of_files(model, name)
    )


def draw_weights(model: nn.Module, names: Collection[str], *, seed: int) -> dict[str, Tensor]:
    """Draw weights that a checkpoint lacks.

    Args:
        model: A skeleton; it is left as it is.
        names: Names of the parameters, one of each that are tied.
        seed: Seed of all of them; the random state outside is left alone.

    Returns:
        Tensors by name on the CPU, in the dtypes of the model, tied names with the others.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    by_identity = {id(parameters[name]): _draw(model, name, seed) for name in names}
    return {
        name: by_identity[id(parameter)]
        for name, parameter in parameters.items()
        if id(parameter) in by_identity
    }


def put_drawn(model: nn.Module, drawn: Mapping[str, Tensor]) -> None:
    """Give a loaded model the weights that were drawn for it.

    Args:
        model: The model; it is changed in place.
        drawn: What `draw_weights` gave.
    """
    with torch.no_grad():
        for name, tensor in drawn.items():
            model.get_parameter(name).copy_(tensor)


def _draw(model: nn.Module, name: str, seed: int) -> Tensor:
    """Initialise one parameter, while all others are on the meta device.

    Returns:
        Its values.

    Raises:
        InvalidCheckpoint: The model does not say what they are.
    """
    path, _, leaf = name.rpartition(".")
    owner, digest = model.get_submodule(path), hashlib.sha256(f"{seed}:{name}".encode())
    number = int.from_bytes(digest.digest()[:8], "big") >> 1
    replaced = cast("Parameter", owner._parameters[leaf])  # noqa: SLF001 - tied ones stay
    empty = torch.full(replaced.shape, math.nan, dtype=torch.float32)
    owner._parameters[leaf] = Parameter(empty, requires_grad=False)  # noqa: SLF001
    try:
        with torch.no_grad(), drawing_from(torch.Generator().manual_seed(number)):
            for module, initialise in _initialisers(model, path):
                initialise(module)
        values = owner._parameters[leaf].detach()  # type: ignore[union-attr]  # noqa: SLF001
    finally:
        owner._parameters[leaf] = replaced  # noqa: SLF001
    if values.isnan().any():
        raise InvalidCheckpoint(
            f"the checkpoint lacks {name!r}, and {type(model).__name__} does not say how to "
            "initialise it: give a checkpoint that has it"
        )
    return values.to(replaced.dtype)


def _initialisers(model: nn.Module, path: str) -> Iterator[tuple[nn.Module, Any]]:
    """The module of a path and those around it, inner ones first, as transformers has it."""
    parts = path.split(".") if path else []
    chain = [model, *(model.get_submodule(".".join(parts[: i + 1])) for i in range(len(parts)))]
    ruling: Any = None
    found = []
    for module in chain:
        ruling = module if isinstance(module, PreTrainedModel) else ruling
        found.append((module, ruling._init_weights))  # noqa: SLF001 - no public way in
    yield from reversed(found)


def mark_initialised(model: nn.Module) -> None:
    """Tell transformers' initialisers to leave every parameter alone that is there now.

    Args:
        model: A skeleton.
    """
    for parameter in model.parameters():
        parameter._is_hf_initialized = True  # type: ignore[attr-defined]  # noqa: SLF001
