"""What a forward pass leaves behind on a model's modules, and how the next one does without.

Some models remember: dynamic rotary frequencies grow with the longest input so far, BigBird
puts other attention in the place of its own when an input is short. What an example gives must
not depend on those that ran before it, so every pass begins from one and the same state.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

_PLAIN = (type(None), bool, int, float, str, Tensor)
_NOT_STATE = {"training"}  # that is for whoever runs the model to say
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

    def changes(self, within: nn.Module | None = None) -> list[Change]:
        """Say what is other than in the beginning.

        Args:
            within: The part of the model to look at; ``None`` for all of it.

        Returns:
            The changes, for `set`.
        """
        modules = self._begin if within is None else [*within.modules()]
        return [
            (module, where, name, now.get(name, _ABSENT))
            for module in modules
            for where, before in self._begin.get(module, {}).items()
            for now in [_state(module, where)]
            for name in now.keys() | before.keys()
            if now.get(name, _ABSENT) is not before.get(name, _ABSENT)
        ]

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
            if value is not now:
                _put(module, where, name, value)
        part = None if within is None else {*within.modules()}
        for (module, where, name), value in wanted.items():
            if part is None or module in part:
                _put(module, where, name, value)


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
