"""Compiled models, seen and run as the modules they were made from.

``torch.compile`` of a whole model or of its blocks puts a wrapper in a module's place, which
holds it under ``_orig_mod``; ``Module.compile``, or compiling its ``forward``, leaves the module
and replaces what a call of it runs. Hooks see nothing of what compiled code does, so a calibration runs without it.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

_INNER = "_orig_mod"
_COMPILED_CALL = "_compiled_call_impl"


def plain_name(name: str) -> str:
    """Name a module or parameter as in the model that was compiled.

    Args:
        name: Its name in the tree as it is.

    Returns:
        The name without the wrappers.
    """
    return ".".join(part for part in name.split(".") if part != _INNER)


@contextmanager
def running_uncompiled(model: nn.Module) -> Iterator[nn.Module]:
    """Take compiled wrappers out of a model for as long as the block lasts.

    Args:
        model: A model that may be compiled, as a whole or in parts.

    Yields:
        The model that was compiled, or the model itself. All wrappers are back when the
        block ends, also when it raises.
    """
    with ExitStack() as stack:
        model = _inner(model)
        for module in list(model.modules()):
            _put(stack, module._modules, _plain_children(module))  # noqa: SLF001
            _put(stack, vars(module), _plain_calls(module))
        yield model


def _put(stack: ExitStack, holder: dict[str, Any], changes: dict[str, Any]) -> None:
    """Replace some entries until the stack ends; their order stays."""
    stack.callback(holder.update, {name: holder[name] for name in changes})
    holder.update(changes)


def _plain_children(module: nn.Module) -> dict[str, nn.Module]:
    children = module._modules.items()  # noqa: SLF001 - a wrapper's own answers for what it holds
    inner = ((name, _inner(child)) for name, child in children if child is not None)
    return {name: plain for name, plain in inner if plain is not module._modules[name]}  # noqa: SLF001


def _plain_calls(module: nn.Module) -> dict[str, Any]:
    """What a call of a module is to run instead of compiled code."""
    calls = vars(module)
    plain = getattr(calls.get("forward"), "_torchdynamo_orig_callable", None)
    changes = {} if plain is None else {"forward": plain}
    return changes if calls.get(_COMPILED_CALL) is None else changes | {_COMPILED_CALL: None}


def _inner(module: nn.Module) -> nn.Module:
    inner: Any = module._modules.get(_INNER)  # noqa: SLF001 - the wrapper answers for it
    return module if inner is None else _inner(inner)
