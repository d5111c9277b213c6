"""How alpha follows from rank, and so the effective scale that each module's update has.

``constant``: alpha is ``scale * rank``, so that ``alpha / rank`` is one number for all modules,
whatever their ranks. ``alpha``: one alpha for all, so that the scale ``alpha / rank`` falls as the
rank rises, as in the paper's published code. ``rslora``: one alpha for all, divided by the root of
the rank (PEFT's ``use_rslora``). Nothing here imports torch.
"""

import math
from fractions import Fraction
from typing import Any, Literal, get_args

from fimlora.errors import InvalidOption

Scaling = Literal["constant", "alpha", "rslora"]
Number = int | float


def scaling_for(alpha: Number | None, *, rslora: bool) -> Scaling:
    """Say which scaling some options ask for.

    Args:
        alpha: The one alpha of all modules, if there is to be one.
        rslora: Whether it is divided by the root of the rank.

    Returns:
        The scaling.

    Raises:
        InvalidOption: The alpha is no positive number, or rsLoRA lacks one.
    """
    if alpha is None:
        if rslora:
            raise InvalidOption("rslora=True needs alpha, the one alpha of all modules")
        return "constant"
    if isinstance(alpha, bool) or not 0 < alpha < math.inf:
        raise InvalidOption(f"alpha={alpha!r}: it must be a number above 0 and finite")
    return "rslora" if rslora else "alpha"


def check_scaling(scaling: Any, alpha: Any) -> None:
    """Refuse what is no scaling.

    Args:
        scaling: One of the three.
        alpha: The one alpha of all modules; ``None`` where the scale is constant.

    Raises:
        InvalidOption: The scaling is unknown, or does not fit the alpha.
    """
    if scaling not in get_args(Scaling) or (alpha is None) != (scaling == "constant"):
        raise InvalidOption(f"scaling={scaling!r} with lora_alpha={alpha!r} means nothing")


def alpha_of(rank: int, *, scale: Number, alpha: Number | None = None) -> Number:
    """Alpha of a module, an integer where it is one: some readers take no other.

    Args:
        rank: Its rank.
        scale: The constant scale.
        alpha: The one alpha of all modules, unless the scale is constant.

    Returns:
        Its alpha.
    """
    # As written: 1.1 times 10 is 11, though the product of floats is above it.
    found = Fraction(repr(scale)) * rank if alpha is None else Fraction(repr(alpha))
    return int(found) if found.denominator == 1 else float(found)


def scale_of(rank: int, *, scaling: Scaling, scale: Number, alpha: Number | None) -> Number:
    """Effective scale of a module, as PEFT derives it from rank and alpha.

    Args:
        rank: Its rank, at least 1.
        scaling: How alpha follows from it.
        scale: The constant scale.
        alpha: The one alpha of all modules, unless the scale is constant.

    Returns:
        Its scale.
    """
    if alpha is None:
        return scale
    return alpha / (math.sqrt(rank) if scaling == "rslora" else rank)
