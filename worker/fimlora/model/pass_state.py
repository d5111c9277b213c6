"""What a forward pass leaves behind on a model's modules, and how the next one does without.

Some models remember: dynamic rotary frequencies grow with the longest input so far, BigBird
puts other attention in the place of its own when an input is short. What an example gives must
not depend on those that ran before it, so every pass begins from one and the same state.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

_LARGE = 2**16  # numbers
_PLAIN = (type(None), bool, int, float, str, Tensor)
# The mode is for whoever runs the model to say; and transformers remembers by the other that its
# hooks are on the modules, which no pass takes off: forgotten, each pass would put on more, and
# whoever reads one hidden state would be given that of another layer.
_NOT_STATE = {"training", "_output_capturing_hooks_installed"}
_ABSENT = object()
# A module, where on it, the name there, and what is there.
Change = tuple[nn.Module, str, str, Any]


class PassState:
    """The state that passes begin from.

    It holds what a pass could leave: plain attributes, buffers that no checkpoint has, and
    sub-modules. Modules of torch itself remember nothing.

    Args:
        model: The model, as passes are to find it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._begin = {
            module: {where: dict(_state(module, where)) for where in _PLACES}
            for module in model.modules()
            if not type(module).__module__.startswith("torch.nn")
        }
        self._contents = {
            id(value): _Content(value, value.clone(), value._version)  # noqa: SLF001
            for states in self._begin.values()
            for state in states.values()
            for value in state.values()
            if isinstance(value, Tensor) and _may_be_overwritten(value)
        }
        self._held = {
            module: [
                (getattr(module, where), dict(getattr(module, where))) for where in _PLACES
            ]
            for module in self._begin
        }
        self._written = {
            module: [v for s in states.values() for v in s.values() if id(v) in self._contents]
            for module, states in self._begin.items()
        }

    def _is_as_it_was(self, module: nn.Module) -> bool:
        """Tell at a glance; most modules are, and there are many of both modules and passes."""
        return all(
            now.keys() == before.keys() and all(map(is_, now.values(), before.values()))
            for now, before in self._held[module]
        ) and not any(map(self._is_overwritten, self._written[module]))

    def _is_overwritten(self, tensor: Tensor) -> bool:
        kept = self._contents.get(id(tensor))
        return kept is not None and kept.version != tensor._version  # noqa: SLF001

    def _write_back(self, tensor: Tensor) -> None:
        with torch.no_grad():
            tensor.copy_(self._contents[id(tensor)].content)
        self._contents[id(tensor)].version = tensor._version  # noqa: SLF001

    def changes(self, within: nn.Module | None = None) -> list[Change]:
        """Say what is other than in the beginning.

        Args:
            within: The part of the model to look at; ``None`` for all of it.

        Returns:
            The changes, for `set`.
        """
        found: list[Change] = []
        for module in self._begin if within is None else within.modules():
            if module not in self._begin or self._is_as_it_was(module):
                continue
            for where, before in self._begin[module].items():
                now = _state(module, where)
                for name in now.keys() | before.keys():
                    value, begin = now.get(name, _ABSENT), before.get(name, _ABSENT)
                    if value is not begin:
                        found.append((module, where, name, value))
                    elif isinstance(value, Tensor) and self._is_overwritten(value):
                        found.append((module, where, name, value.clone()))
        return found

    def set(self, changes: Sequence[Change] = (), within: nn.Module | None = None) -> None:
        """Put the state of the beginning back, and some changes of it in their place.

        Args:
            changes: What `changes` gave; none for the beginning.
            within: The part of the model to set; ``None`` for all of it.
        """
        wanted = {(m, where, name): value for m, where, name, value in changes}
        for module, where, name, now in self.changes(within):
            begin = self._begin[module][where].get(name, _ABSENT)
            value = wanted.pop((module, where, name), begin)
            if isinstance(begin, Tensor) and self._is_overwritten(begin):
                self._write_back(begin)
            if value is not now:
                _put(module, where, name, value)
        part = None if within is None else {*within.modules()}
        for (module, where, name), value in wanted.items():
            if part is None or module in part:
                _put(module, where, name, value)


@dataclass
class _Content:
    """What was in a tensor, and torch's count of the times it has been written to."""

    tensor: Tensor
    content: Tensor
    version: int


def _may_be_overwritten(tensor: Tensor) -> bool:
    """Frequencies may be; tables that are large, such as masks, are only read."""
    is_real = not tensor.is_meta and not tensor.is_inference()
    return is_real and tensor.is_floating_point() and tensor.numel() <= _LARGE


_PLACES = ("__dict__", "_buffers", "_modules")


def _state(module: nn.Module, where: str) -> dict[str, Any]:
    held: dict[str, Any] = getattr(module, where)
    if where == "_modules":
        return held
    if where == "_buffers":
        passing = module._non_persistent_buffers_set  # noqa: SLF001 - torch has no other word
        return {name: held[name] for name in held if name in passing}
    return {
        name: value
        for name, value in held.items()
        if isinstance(value, _PLAIN) and name not in _NOT_STATE
    }


def _put(module: nn.Module, where: str, name: str, value: Any) -> None:
    held = getattr(module, where)
    if value is _ABSENT:
        held.pop(name, None)
    else:
        held[name] = value
