"""How a configuration says that GPTQ or AWQ has put the integers of a weight into words.

Tools call the layout ``format``, ``checkpoint_format`` or ``version``, and may write all three. One
that is not known may have tensors of the same names and shapes, so it is refused, never guessed.
"""

from collections.abc import Mapping
from typing import Any

# Less one: the first format of GPTQ stores zero points so.
_PLUS = {"gptq": 1, "gptq_v2": 0}
_AWQ = "gemm"
_BITS = {"gptq": (2, 3, 4, 8), "awq": (4,)}
_KEYS = ("format", "checkpoint_format", "version")


class UnreadFormat(ValueError):
    """Integers are packed in a way that is not read; says which, and which are."""


def zero_point_offset(quantisation: Mapping[str, Any], method: str) -> int:
    """Read what stored zero points lack.

    Args:
        quantisation: What a configuration says of its quantisation.
        method: ``gptq`` or ``awq``.

    Returns:
        What is to be added to them.

    Raises:
        UnreadFormat: The layout is not one that is read, or is told in two ways.
    """
    told = {
        str(quantisation[key]).lower() for key in _KEYS if quantisation.get(key) is not None
    }
    known = {_AWQ} if method == "awq" else set(_PLUS)
    if method == "gptq" and quantisation.get("rotation"):
        raise UnreadFormat(
            f"({method}, rotation={quantisation['rotation']!r}), and of {method} weights that are "
            "not rotated are read"
        )
    if not told <= known or len(told) > 1:
        raise UnreadFormat(
            f"({method}, format {' and '.join(sorted(told))}), and of {method} the "
            f"{'format' if len(known) == 1 else 'formats'} {' and '.join(sorted(known))} "
            f"{'is' if len(known) == 1 else 'are'} read, one of a checkpoint"
        )
    return _PLUS[told.pop() if told else "gptq"] if method == "gptq" else 0


def bits_of(
    quantisation: Mapping[str, Any], method: str, *, n_words: int, d_in: int | None
) -> int:
    """Read how many bits the integers of one weight have.

    Args:
        quantisation: What a configuration says of its quantisation.
        method: ``gptq`` or ``awq``.
        n_words: Words of 32 bits that hold the inputs of an output.
        d_in: Input features, if another tensor tells them.

    Returns:
        Bits of an integer; with settings for each module, those that fit its tensors.

    Raises:
        UnreadFormat: So many are not read.
    """
    bits = quantisation.get("bits", quantisation.get("w_bit"))
    if method == "gptq" and quantisation.get("dynamic") and d_in:
        # Expressions say which modules have other bits; how many they are the tensors tell.
        bits = n_words * 32 / d_in
        bits = int(bits) if bits.is_integer() else bits
    if isinstance(bits, bool) or bits not in _BITS[method]:
        read = " and ".join(map(str, _BITS[method]))
        raise UnreadFormat(f"({method}, bits={bits!r}), and of {method} {read} bit are read")
    return int(bits)
