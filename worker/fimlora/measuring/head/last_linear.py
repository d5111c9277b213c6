"""Find the linear map whose outputs a classifier's logits are, and the inputs they come from.

Asked on the model at hand: the map's outputs are replaced by random numbers, and the derivative
of the logits tells what shares of them each logit is. So no architecture is assumed to pool its
first or its last token, or to pool before its map and not behind it: logits that are means of the
outputs over tokens are the outputs of the mean input. Whatever else is done behind the map shows.

Symbols: N examples, T tokens of each, D input features, C labels.
"""

import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fimlora.errors import UnsupportedModule
from fimlora.model.targets import base_model_of
from fimlora.shapes import Float

# How far sums of shares may be off for rounding, in steps of their dtype.
_ROUNDING_STEPS = 64.0
# Standard deviation of what outputs are replaced by: where a curve that logits go through bends.
_SPREAD = 8.0


class LastLinear:
    """Sees what a linear map is called with, and what becomes of its outputs.

    Args:
        name: Its name.
        linear: The map.
    """

    def __init__(self, name: str, linear: nn.Linear) -> None:
        self.name, self.linear = name, linear
        # By thread: streamed, several passes are under way at once. Inputs, and what was given
        # in place of the outputs.
        self._calls: dict[int, list[tuple[Tensor, Tensor]]] = defaultdict(list)

    @contextmanager
    def replacing(self) -> Iterator[None]:
        """Replace its outputs by random numbers for as long as the block lasts.

        Yields:
            None. The hook is gone when the block ends, also when it raises.
        """

        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:  # noqa: ARG001
            draw = torch.Generator().manual_seed(0)
            numbers = torch.randn(output.shape, generator=draw) * _SPREAD
            given = numbers.to(output).requires_grad_()
            self._calls[threading.get_ident()].append((args[0].detach(), given))
            # Not a leaf: what comes behind may change it in place.
            return given.clone()

        handle = self.linear.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()
            self._calls.clear()

    def features(self, logits: Tensor) -> Float[Tensor, "N D"] | None:
        """Say what the logits of this thread's last pass are the map's outputs of.

        Args:
            logits: (N C), on a graph that begins at the map.

        Returns:
            Its input for each example, or a mean of its inputs; ``None`` where the logits are
            nothing of the kind.
        """
        calls = self._calls.pop(threading.get_ident(), [])
        is_one_each = logits.dim() == 2 and logits.shape[1] == self.linear.out_features
        if len(calls) != 1 or not is_one_each or not logits.requires_grad:
            return None
        x, given = calls[0]
        if len(x) != len(logits):
            return None
        shares = _shares(logits, given, sum_to_one=self.linear.bias is not None)
        if shares is None:
            return None
        return torch.einsum("nt,ntd->nd", shares, x.reshape(*shares.shape, -1))


def _shares(
    logits: Float[Tensor, "N C"], given: Tensor, *, sum_to_one: bool
) -> Float[Tensor, "N T"] | None:
    """The shares of an example's outputs that its logits are, if they are such for all labels.

    Shares that do not sum up to one would count a bias that often.

    Returns:
        Them; ``None`` where the logits are no such shares.
    """
    reached: tuple[Tensor | None, ...] = torch.autograd.grad(
        logits.sum(), given, allow_unused=True
    )
    if reached[0] is None:
        return None
    found = reached[0].reshape(len(logits), -1, logits.shape[1])
    shares = found[..., 0]
    outputs = given.detach().reshape(found.shape)
    limit = _ROUNDING_STEPS * torch.finfo(logits.dtype).eps
    off = (torch.einsum("nt,ntc->nc", shares, outputs) - logits.detach()).abs().max()
    excess = (shares.sum(1) - 1).abs().max() if sum_to_one else 0.0
    is_for_all = torch.equal(found, shares[..., None].expand_as(found))
    is_linear = bool(off <= limit * _SPREAD) and bool(excess <= limit)
    return shares if is_for_all and is_linear else None


def candidates(model: nn.Module) -> list[LastLinear]:
    """List the linear maps outside of repeated blocks that have an output per label.

    Args:
        model: A classifier, wrapped by PEFT or not, or its skeleton. Names are those of the
            model that is wrapped.

    Returns:
        Them, the last one first; possibly none.
    """
    base: Any = base_model_of(model)
    n_outputs = getattr(base.config, "num_labels", None)
    lists = tuple(f"{n}." for n, m in base.named_modules() if isinstance(m, nn.ModuleList))
    found = [
        LastLinear(name, module)
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear)
        and module.weight.is_floating_point()
        and module.out_features == n_outputs
        and not name.startswith(lists)
    ]
    return found[::-1]


def no_last_linear(model: nn.Module, tried: Sequence[LastLinear]) -> UnsupportedModule:
    """Say that a model's head cannot be fitted.

    Args:
        model: The model.
        tried: Maps whose outputs its logits are not.

    Returns:
        The error, to be raised.
    """
    names = ", ".join(repr(linear.name) for linear in tried) or "none has an output per label"
    return UnsupportedModule(
        f"the logits of {type(base_model_of(model)).__name__} are neither the outputs of a linear "
        f"map that runs once nor means of them ({names}), so its head cannot be fitted: keep it "
        "as drawn (head='fresh')"
    )
