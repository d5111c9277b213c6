"""What an optimizer knows of a LoRA matrix, carried over to another rank of it.

Symbols as in `fimlora.adapter.resizing`. Averages of gradients, being linear in them, go along with
rows that were mixed as the gradients do, exactly: ``m_A' = N^T m_A`` and ``m_B' = m_B M^T``. Averages
of squares, ``v``, would need the products between rows, which no optimizer keeps: they go along as if
rows were uncorrelated, ``v_A' = (N^T)^2 v_A`` and ``v_B' = v_B (M^T)^2``, squared entry by entry. Of
what is new, both are zero.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from fimlora.adapter.resizing import Resized
from fimlora.errors import UnsupportedModule

# The names that torch's Adam, AdamW, SGD, RMSprop, Adagrad, NAdam, RAdam and Adamax use.
_LINEAR = frozenset({"exp_avg", "momentum_buffer", "grad_avg"})
_SQUARED = frozenset({"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum"})


def carried_state(
    optimizer: Optimizer, parameter: nn.Parameter, resized: Resized, *, is_A: bool
) -> dict[str, Any]:
    """Make an optimizer's state for a matrix at another rank; nothing is changed.

    Args:
        optimizer: The optimizer.
        parameter: The matrix as it was.
        resized: The pair that takes its and its partner's place.
        is_A: Whether it is A.

    Returns:
        The state; empty where there is none yet.

    Raises:
        UnsupportedModule: The optimizer keeps something that nobody here knows how to resize.
    """
    found: dict[str, Any] = {}
    # Not by subscript: that makes a state where there is none.
    state: Mapping[str, Any] = optimizer.state.get(parameter, {})
    for key, value in state.items():
        if not isinstance(value, Tensor) or value.dim() == 0:
            found[key] = value
        elif value.shape == parameter.shape and key in _LINEAR | _SQUARED:
            found[key] = _carried(value, resized, is_A=is_A, is_squared=key in _SQUARED)
        else:
            raise UnsupportedModule(
                f"{type(optimizer).__name__} keeps {key!r} of shape {tuple(value.shape)} for a "
                f"matrix of shape {tuple(parameter.shape)}, which cannot be carried over to another "
                "rank; Adam, AdamW and SGD can"
            )
    return found


def replace_parameter(
    optimizer: Optimizer, old: nn.Parameter, new: nn.Parameter, state: Mapping[str, Any]
) -> None:
    """Let an optimizer train another parameter in the place of one, in its group.

    Args:
        optimizer: The optimizer.
        old: What it has trained.
        new: What it is to train.
        state: The state for it.
    """
    for group in optimizer.param_groups:
        for i, parameter in enumerate(group["params"]):
            if parameter is old:
                group["params"][i] = new
    optimizer.state.pop(old, None)
    if state:
        optimizer.state[new] = dict(state)


def _carried(value: Tensor, resized: Resized, *, is_A: bool, is_squared: bool) -> Tensor:
    """One average, with the ranks first for A and last for B."""
    by_rank = value if is_A else value.T
    if resized.rotation is not None:
        mixing = resized.rotation.N.T if is_A else resized.rotation.M  # (k r)
        mixing = mixing.square() if is_squared else mixing
        by_rank = (mixing @ by_rank.to(mixing)).to(value)
    new = by_rank.new_zeros(len(resized.A), by_rank.shape[1])
    new[: resized.kept] = by_rank[: resized.kept]
    return new if is_A else new.T.contiguous()


def check_trained(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> None:
    """See that an optimizer trains all of some parameters.

    Args:
        optimizer: The optimizer.
        parameters: These by name.

    Raises:
        UnsupportedModule: It does not: it has copies of its own, or they are frozen.
    """
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in parameters.items():
        if id(parameter) not in trained:
            raise UnsupportedModule(
                f"{type(optimizer).__name__} does not train {name} itself: an adapter that is moved "
                "must be trained in one process, and all of it"
            )
