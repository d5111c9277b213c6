"""Whether gradients pass through the quantised maps of a model: tried, not assumed.

A kernel without a backward pass need not raise: its output may come without a graph, and the
gradient then reaches earlier modules by the residual stream alone, which would be wrong in
silence. So one map of every kind in the model is run forward and backward once.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from fimlora.errors import UnsupportedModule
from fimlora.memory.out_of_memory import is_out_of_memory
from fimlora.model.linear_kinds import computes_in, features_of, is_quantised, weight_of

# Kernels may round activations to 8 bits, and some to 4, on their way forward.
_ROUNDING = 0.2
_MAX_REASON = 160  # characters of what a kernel says
_NO_BACKWARD = (
    "its kernel has no backward pass here, so no gradient reaches what lies before it (weights "
    "that were packed anew for inference are loaded again)"
)
_WAY_OUT = (
    "load the model as it was before it was quantised, or run it where its kernels train "
    "(most need a GPU); ranks measured on the unquantised model hold for the quantised one, too"
)


def check_gradients_pass(model: nn.Module, *, device: torch.device) -> None:
    """Refuse a model with a quantised map that gradients do not pass through.

    Targets or not: every one of them lies on the way to some module.

    Args:
        model: A base model in the mode that it is measured in; its maps keep their state.
        device: Where its inputs lie.

    Raises:
        UnsupportedModule: There is one; the message names it and says what to do.
    """
    dtype = computes_in(model)
    for name, module in _one_of_each(model.named_modules()):
        try:
            fault = _fault(module, device, dtype)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            fault = f"its kernel refuses: {_first_words(error)}"
        if fault:
            kind = f"{type(module).__module__.partition('.')[0]}.{type(module).__name__}"
            raise UnsupportedModule(
                f"{name!r} ({kind}) cannot be measured: {fault}; {_WAY_OUT}"
            )


def _one_of_each(modules: Iterable[tuple[str, nn.Module]]) -> Iterator[tuple[str, nn.Module]]:
    """The first map of each class, kind of weight and size."""
    seen = set()
    for name, module in modules:
        if not is_quantised(module):
            continue
        weight = weight_of(module)
        kind = (type(module), type(weight), weight is not None and weight.dtype)
        if (key := (*kind, features_of(module))) not in seen:
            seen.add(key)
            yield name, module


def _fault(module: nn.Module, device: torch.device, dtype: torch.dtype) -> str | None:
    """Run two vectors through a map, and hold the gradient of their difference against it.

    With y0 - y1 = W (x0 - x1) as the output gradient of y0, that of x0 is W^T (y0 - y1), and
    its product with x0 - x1 is the square of y0 - y1. A bias falls out.

    Returns:
        What is wrong, if anything is.
    """
    d_in, d_out = features_of(module)
    weight = weight_of(module)
    device = device if weight is None or weight.is_meta else weight.device
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 2, d_in, generator=generator).to(device, dtype).requires_grad_()
    with torch.enable_grad():
        # Not by a call: hooks that people have put on it are not to see this.
        y = module.forward(x)
        if not isinstance(y, Tensor) or y.shape != (1, 2, d_out):
            return "it does not return one vector of its output features for each input"
        if not y.requires_grad:
            return _NO_BACKWARD
        change = (y[:, 0] - y[:, 1]).detach()
        given = torch.stack([change, -change], dim=1)
        grads: list[Tensor | None] = [*torch.autograd.grad(y, x, given, allow_unused=True)]
    if (gradient := grads[0]) is None:
        return _NO_BACKWARD
    wanted = change.double().square().sum()
    found = (gradient[:, 0].double() * (x[:, 0] - x[:, 1]).detach().double()).sum()
    if not (found - wanted).abs() <= _ROUNDING * wanted:
        return "the gradient its kernel gives is not that of the map it computes"
    return None


def _first_words(error: Exception) -> str:
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= _MAX_REASON else f"{words[:_MAX_REASON].rstrip()} ..."
