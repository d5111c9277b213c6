"""What packed weights stand for: the numbers that a quantiser's own kernels multiply with.

Symbols: E experts, O output and I input features of a linear map, G groups of inputs with a scale each.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fimlora.errors import InvalidCheckpoint
from fimlora.model.packed_parts import PackedWeight
from fimlora.shapes import Float

_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where the eight columns of an integer lie in it
_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # negative ones follow in the same order
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


def unpacked_dtype(weight: PackedWeight) -> torch.dtype:
    """Name the dtype that a weight's quantiser unpacks it to.

    Args:
        weight: The weight.

    Returns:
        The dtype.
    """
    return _DTYPES[weight.dtype]


def unpack(weight: PackedWeight, read: Callable[[str], Tensor]) -> Float[Tensor, "..."]:
    """Make the weight that packed tensors stand for.

    Args:
        weight: What it is packed into.
        read: Reads a tensor of the checkpoint.

    Returns:
        The weight, in the dtype its quantiser unpacks it to.

    Raises:
        InvalidCheckpoint: The tensors hold what they may not.
    """
    parts = {role: read(name) for role, name in weight.parts.items()}
    make = {
        "bnb4": _four_bits,
        "bnb8": _eight_bits,
        "scaled": _scaled,
        "fp4": _pairs,
        "fp4_experts": _fused_experts,
        "packed": _compressed,
        "gptq": _gptq,
        "awq": _awq,
    }[weight.method]
    try:
        made = make(weight, parts)
    except (IndexError, ValueError, RuntimeError) as error:
        raise InvalidCheckpoint(
            f"{weight.parts['weight']!r} cannot be unpacked: {' '.join(str(error).split())}"
        ) from error
    # Another layout would let kernels round otherwise than streamed weights.
    return made.reshape(weight.shape).to(unpacked_dtype(weight)).contiguous()


def _four_bits(weight: PackedWeight, parts: Mapping[str, Tensor]) -> Tensor:
    """The high half of a byte comes first; every block has a scale, and these may be coded too."""
    n, block = weight.shape[0] * weight.shape[1], weight.options["block"]
    packed = parts["weight"].flatten().view(torch.uint8)
    codes = torch.stack([packed >> 4, packed & 15], dim=1).flatten()[:n]
    scales = parts["absmax"]
    if nested := weight.options["nested"]:
        of_scales = _repeated(parts["nested_absmax"].float(), nested, len(scales))
        scales = parts["nested_quant_map"].float()[scales.int()] * of_scales
        scales = scales + weight.options["offset"]
    values = parts["quant_map"].float()[codes.int()]
    return values * _repeated(scales.float(), block, n)


def _eight_bits(
    weight: PackedWeight,  # noqa: ARG001 - all makers are called alike
    parts: Mapping[str, Tensor],
) -> Tensor:
    """A row at a time, its largest number being 127."""
    if "format" in parts and bool(parts["format"].any()):
        raise ValueError("its weight_format is that of a GPU's kernel; save it anew")
    return parts["weight"].float() * (parts["scale"].float() / 127)[:, None]


def _scaled(weight: PackedWeight, parts: Mapping[str, Tensor]) -> Tensor:
    """One scale for each block, row or for all; integers may have a zero point beside it."""
    rows, columns = weight.options["block"]

    def spread(tensor: Tensor) -> Tensor:
        wide = tensor.float()
        if wide.numel() == 1:
            return wide.reshape(1, 1)
        wide = wide.reshape(len(wide), -1).repeat_interleave(rows, 0)
        return wide.repeat_interleave(columns, 1)[: weight.shape[0], : weight.shape[1]]

    values = parts["weight"].float()
    if "zero" in parts:
        values = values - spread(parts["zero"])
    return values * spread(_scales(parts["scale"]))


def _scales(stored: Tensor) -> Tensor:
    """Scales as numbers; a byte stands for a power of two."""
    if stored.dtype.itemsize > 1 or stored.dtype in {torch.float8_e4m3fn, torch.float8_e5m2}:
        return stored.float()
    exponents = stored.view(torch.uint8).int()
    if bool((exponents == 255).any()):
        raise ValueError("a scale is no number")
    # The bits of a float32: its exponent is as wide, and the least power has none.
    bits = torch.where(exponents == 0, 1 << 22, exponents << 23)
    return bits.to(torch.int32).view(torch.float32)


def _floats_of_pairs(packed: Tensor) -> Tensor:
    """The numbers that bytes hold two of, the first one in the low half."""
    table = torch.tensor([*_FP4, *(-value for value in _FP4)])
    pairs = packed.view(torch.uint8)
    codes = torch.stack([pairs & 15, pairs >> 4], dim=-1).flatten(-2)
    return table[codes.int()]


def _pairs(weight: PackedWeight, parts: Mapping[str, Tensor]) -> Tensor:
    """So many inputs of a row share a scale, and all scales may share one that they were times."""
    scales = _scales(parts["scale"])
    if "of_all" in parts:
        scales = scales / parts["of_all"].float()
    values = _floats_of_pairs(parts["weight"])
    return values * scales.repeat_interleave(weight.shape[1] // scales.shape[1], 1)


def _fused_experts(weight: PackedWeight, parts: Mapping[str, Tensor]) -> Tensor:
    """One expert after the other: all of them as float32 would be four times the result's codes."""
    made = torch.empty(weight.shape, dtype=unpacked_dtype(weight))
    for i, (blocks, scales) in enumerate(zip(parts["weight"], parts["scale"], strict=True)):
        numbers = _floats_of_pairs(blocks) * _scales(scales)[..., None]  # (O, groups, 32)
        made[i] = numbers.flatten(1).T
    return made


def _compressed(weight: PackedWeight, parts: Mapping[str, Tensor]) -> Tensor:
    """Integers with the least one added, the first of them in the lowest bits."""
    bits = int(weight.options["bits"])
    d_out, d_in = weight.shape
    least = 1 << bits - 1
    values = _split(parts["weight"], bits, dim=1)[:, :d_in] - least
    group = _groups(parts, d_in, parts["scale"].shape[1])
    if "zero" in parts:
        values = values - (_split(parts["zero"], bits, dim=0)[:d_out] - least)[:, group]
    numbers: Tensor = values * parts["scale"].float()[:, group]
    return numbers


def _gptq(weight: PackedWeight, parts: Mapping[str, Tensor]) -> Tensor:
    """Rows of an integer are consecutive inputs; an input's group may be listed."""
    bits = int(weight.options["bits"])
    d_out, d_in = weight.shape
    values = _split(parts["weight"], bits, dim=0)  # (I, O)
    zeros = _split(parts["zero"], bits, dim=1)[:, :d_out] + int(weight.options["plus"])
    zeros = zeros & (1 << bits) - 1
    group = _groups(parts, d_in, len(parts["scale"]))
    numbers: Tensor = (values - zeros[group]) * parts["scale"].float()[group]
    return numbers.T


def _awq(weight: PackedWeight, parts: Mapping[str, Tensor]) -> Tensor:
    """Columns of an integer are outputs, in an order of their own."""
    bits = int(weight.options["bits"])
    order = torch.tensor(_AWQ_ORDER)

    def columns(tensor: Tensor) -> Tensor:
        eights: Tensor = _split(tensor, bits, dim=1).unflatten(1, (-1, 8))
        return eights[:, :, order].flatten(1)

    group = _groups(parts, weight.shape[1], len(parts["scale"]))
    values = columns(parts["weight"]) - columns(parts["zero"])[group]
    numbers: Tensor = values * parts["scale"].float()[group]
    return numbers.T


def _split(packed: Tensor, bits: int, *, dim: int) -> Tensor:
    """Take 32 bit integers apart along an axis, the lowest bits first."""
    if 32 % bits:
        return _split_across(packed.movedim(dim, 0), bits).movedim(0, dim)
    shifts = torch.arange(0, 32, bits)
    if dim == 0:
        return (packed[:, None] >> shifts[:, None] & (1 << bits) - 1).flatten(0, 1)
    return (packed[:, :, None] >> shifts & (1 << bits) - 1).flatten(1)


def _split_across(packed: Tensor, bits: int) -> Tensor:
    """Take integers apart along the first axis where some numbers lie across two of them."""
    words = packed.unflatten(0, (-1, bits))  # 32 numbers to so many words
    found = []
    for start in range(0, 32 * bits, bits):
        word, shift = divmod(start, 32)
        here = min(bits, 32 - shift)
        number = words[:, word] >> shift & (1 << here) - 1
        if here < bits:
            number = number | (words[:, word + 1] & (1 << bits - here) - 1) << here
        found.append(number)
    return torch.stack(found, dim=1).flatten(0, 1)


def _groups(parts: Mapping[str, Tensor], d_in: int, n_groups: int) -> Tensor:
    """The group of each input."""
    if "group" not in parts:
        return torch.arange(d_in) // (d_in // n_groups)
    group = parts["group"]
    if group.is_floating_point() or group.is_complex():
        raise ValueError(f"groups of inputs are listed as {group.dtype}")
    negative = group < 0  # all of them, where groups were never given another order
    if bool(negative.all()):
        return torch.arange(d_in) // -(-d_in // n_groups)
    if bool(negative.any()):
        raise ValueError("some inputs are listed as of no group")
    return group.long()


def _repeated(values: Tensor, times: int, length: int) -> Tensor:
    return values.repeat_interleave(times)[:length]
