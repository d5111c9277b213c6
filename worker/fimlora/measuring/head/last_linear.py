"""Find the linear map whose outputs are a classifier's logits, and the inputs they come from.

Asked on the model at hand: the map's outputs are replaced by numbers that say where they stand,
and the logits then tell which of them they are. So no architecture is assumed to pool its first
or its last token, and whatever changes logits behind the map shows.
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


class LastLinear:
    """Sees what a linear map is called with, and marks what it gives.

    Args:
        name: Its name.
        linear: The map.
    """

    def __init__(self, name: str, linear: nn.Linear) -> None:
        self.name, self.linear = name, linear
        # By thread: streamed, several passes are under way at once.
        self._inputs: dict[int, list[Tensor]] = defaultdict(list)

    @contextmanager
    def marking(self) -> Iterator[None]:
        """Mark its outputs for as long as the block lasts.

        Yields:
            None. The hook is gone when the block ends, also when it raises.
        """

        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:  # noqa: ARG001
            self._inputs[threading.get_ident()].append(args[0].detach())
            numbers = torch.arange(output.numel(), dtype=torch.float64, device=output.device)
            return numbers.view(output.shape)

        handle = self.linear.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()
            self._inputs.clear()

    def features(self, logits: Tensor) -> Float[Tensor, "N D"] | None:
        """Pick what the logits of this thread's last pass were made from.

        Args:
            logits: (N C), with the marks.

        Returns:
            Its input for each example; ``None`` where the logits are not its outputs.
        """
        inputs = self._inputs.pop(threading.get_ident(), [])
        if len(inputs) != 1 or logits.dim() != 2:
            return None
        rows, width = inputs[0].flatten(0, -2), logits.shape[1]
        marks = logits.double()
        first = marks[:, :1]
        expected = first + torch.arange(width, dtype=torch.float64, device=marks.device)
        is_row = (first % width == 0) & (first < len(rows) * width)
        if width != self.linear.out_features or not is_row.all():
            return None
        if not torch.equal(marks, expected):
            return None
        return rows[(first[:, 0] / width).long()]


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
        f"the logits of {type(base_model_of(model)).__name__} are not the outputs of a linear "
        f"map that runs once ({names}), so its head cannot be fitted: keep it as drawn "
        "(head='fresh')"
    )
