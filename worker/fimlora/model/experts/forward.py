"""Run fused experts expert by expert, so that each matrix has an input and an output to look at.

The module's own forward may be a loop, one large grouped product or a product of gathered weights,
as its config says; here it is the loop whatever that is. It goes by what transformers' decorator
says of a class, so it is held against the module's own forward on the first few tokens.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fimlora.errors import UnsupportedModule
from fimlora.model.experts.fused import is_llama4, is_swapped
from fimlora.model.experts.routed import Routed

# Given a parameter's name in its module, an expert, its tokens and its output; gives the output.
See = Callable[[str, int, Routed, Tensor], Tensor]
# Tokens that are also taken through the module's own forward, and how far apart the two may be.
_TRIED = 4
_ROUNDING = 2.0**-6


@contextmanager
def seeing_experts(name: str, module: nn.Module, see: See) -> Iterator[None]:
    """Run the experts of a module one by one, for as long as the block lasts.

    Args:
        name: What to call the module in errors.
        module: The experts.
        see: Looks at each call of an expert's matrix, and may replace what it returns.

    Yields:
        None. The module runs as before when the block ends, also when it raises.
    """
    # Where weights come by themselves, that is done around the method of this name.
    place = "_old_forward" if "_old_forward" in vars(module) else "forward"
    before = vars(module).get(place)
    own = getattr(module, place)
    signature = inspect.signature(type(module).forward)
    tried = False

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal tried
        given = [*signature.bind(module, *args, **kwargs).arguments.values()][1:]
        if not tried:
            _compare(name, module, own, given)
            tried = True
        return _run(module, given, see)

    vars(module)[place] = forward
    try:
        yield
    finally:
        vars(module).pop(place)
        if before is not None:
            vars(module)[place] = before


def _run(module: Any, given: list[Any], see: See) -> Tensor:
    if is_llama4(module):
        (tokens,) = given
        return _run_llama4(module, tokens, see)
    hidden, index, weights = given
    return _run_routed(module, hidden, index, weights, see)


def _run_routed(
    module: Any, hidden: Tensor, index: Tensor, weights: Tensor, see: See
) -> Tensor:
    """Run each expert on the tokens that have chosen it, and add up what they return."""
    made, up = torch.zeros_like(hidden), "gate_up_proj" if module.has_gate else "up_proj"
    for expert in _chosen(index, module.num_experts):
        rows, choice = (index == expert).nonzero(as_tuple=True)
        x = hidden[rows]
        inner = see(up, expert, Routed(x, rows, len(hidden)), _product(module, up, expert, x))
        inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)  # noqa: SLF001
        outer = _product(module, "down_proj", expert, inner)
        outer = see("down_proj", expert, Routed(inner, rows, len(hidden)), outer)
        if module.has_post_expert_norm:
            outer = module.post_expert_norm(outer)
        made.index_add_(0, rows, (outer * weights[rows, choice, None]).to(made.dtype))
    return made


def _run_llama4(module: Any, hidden: Tensor, see: See) -> Tensor:
    """Run each expert on the tokens it is given that are not zero: zeros come out as zeros."""
    tokens = hidden.view(module.num_experts, -1, hidden.shape[-1])
    made, swapped = torch.zeros_like(tokens), is_swapped(module)
    for expert, given in enumerate(tokens):
        rows = given.detach().ne(0).any(dim=-1).nonzero()[:, 0]
        if not len(rows):
            continue
        x = given[rows]
        inner = x @ module.gate_up_proj[expert]
        inner = see("gate_up_proj", expert, Routed(x, rows, len(given), swapped), inner)
        gate, up = inner.chunk(2, dim=-1)
        inner = up * module.act_fn(gate)
        outer = inner @ module.down_proj[expert]
        outer = see("down_proj", expert, Routed(inner, rows, len(given), swapped), outer)
        made[expert] = made[expert].index_copy(0, rows, outer)
    return made.view(hidden.shape)


def _chosen(index: Tensor, n_experts: int) -> list[int]:
    """The experts that some token has chosen; what is above their number stands for none."""
    return [expert for expert in index.unique().tolist() if expert < n_experts]


def _product(module: Any, name: str, expert: int, x: Tensor) -> Tensor:
    weight = getattr(module, name)[expert]
    bias = getattr(module, f"{name}_bias")[expert] if module.has_bias else None
    return nn.functional.linear(x, weight.mT if module.is_transposed else weight, bias)


def _compare(name: str, module: Any, own: Callable[..., Tensor], given: list[Any]) -> None:
    """Take a few tokens both ways.

    Raises:
        UnsupportedModule: They come out differently.
    """
    with torch.no_grad():
        few = _few(module, given)
        wanted, found = own(*few), _run(module, few, lambda *seen: seen[-1])
    off = (found - wanted).abs().max().item() if wanted.numel() else 0.0
    most = wanted.abs().max().item() if wanted.numel() else 0.0
    if not off <= _ROUNDING * most:
        raise UnsupportedModule(
            f"the experts of {name!r}, a {type(module).__name__}, do not run as a loop over experts "
            f"does: their outputs are {off:.2g} apart, and {most:.2g} large; leave "
            "target_parameters out"
        )


def _few(module: Any, given: list[Any]) -> list[Any]:
    if is_llama4(module):
        (hidden,) = given
        tokens = hidden.view(module.num_experts, -1, hidden.shape[-1])[:, :_TRIED]
        return [tokens.reshape(-1, hidden.shape[-1])]
    return [tensor[:_TRIED] for tensor in given]


def by_module(modules: Mapping[str, nn.Module]) -> dict[int, tuple[nn.Module, list[str]]]:
    """Bring parameters of one module together.

    Args:
        modules: The modules by the name of a parameter.

    Returns:
        Each module once with these names, by its identity.
    """
    found: dict[int, tuple[nn.Module, list[str]]] = {}
    for name, module in modules.items():
        found.setdefault(id(module), (module, []))[1].append(name)
    return found
