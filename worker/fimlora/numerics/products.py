"""Matrix products that are written in float32 though a factor is half as wide.

Matrix units add up the products of bfloat16 numbers in float32; only what they write is
rounded. Where torch can have it written as it is, half precision factors are multiplied as
they are; elsewhere they are widened first. A float32 factor goes through the same units as a
sum of bfloat16 parts, of 8 bits each.

Symbols: A rows, B inner length, C columns; products may come in batches.
"""

from functools import cache

import torch
from torch import Tensor

from fimlora.shapes import Float

_HALF = (torch.bfloat16, torch.float16)


def widen(tensor: Tensor) -> Tensor:
    """Lift half precision to float32; wider types stay as they are.

    Returns:
        The tensor itself when it is wide enough already.
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def as_factor(tensor: Tensor) -> Tensor:
    """Widen a tensor before it is multiplied several times, unless it may stay as it is.

    Returns:
        The tensor itself, or in float32.
    """
    is_multiplied_so = tensor.dtype in _HALF and writes_float32(
        tensor.dtype, tensor.device.type
    )
    return tensor if is_multiplied_so else widen(tensor)


def multiply(
    left: Float[Tensor, "*N A B"], right: Float[Tensor, "*N B C"]
) -> Float[Tensor, "*N A C"]:
    """Multiply matrices of any dtypes.

    Args:
        left: The left factor.
        right: The right factor.

    Returns:
        The product in float32 at least, never rounded to less.
    """
    if left.dtype == right.dtype and left.dtype in _HALF:
        left, right = as_factor(left), as_factor(right)
        if left.dtype in _HALF:
            return _into_float32(left, right)
    return widen(left) @ widen(right)


def multiply_wide(
    left: Float[Tensor, "*N A B"], right: Float[Tensor, "*N B C"], *, n_parts: int
) -> Float[Tensor, "*N A C"]:
    """Multiply a float32 matrix with one that may be narrower.

    Args:
        left: The left factor, in float32 at least.
        right: The right factor.
        n_parts: Parts that the left factor may be split into where the right one is bfloat16
            and that is faster. It then enters with ``8 * n_parts`` bits; float32 has 24.

    Returns:
        The product in float32 at least.
    """
    if right.dtype is torch.bfloat16 and writes_float32(right.dtype, right.device.type):
        return multiply_split(left, right, n_parts=n_parts)
    right = widen(right)
    return left.to(right.dtype) @ right


def multiply_split(
    left: Float[Tensor, "*N A B"], right: Float[Tensor, "*N B C"], *, n_parts: int
) -> Float[Tensor, "*N A C"]:
    """Multiply a float32 matrix, as a sum of bfloat16 parts, with a bfloat16 one.

    Args:
        left: The left factor in float32.
        right: The right factor in bfloat16.
        n_parts: Parts of the left factor.

    Returns:
        The product in float32.
    """
    parts = []
    for _ in range(n_parts):
        parts.append(left.bfloat16())
        left = left - parts[-1]
    product = multiply(torch.cat(parts, dim=-2), right)
    by_part: Tensor = product.unflatten(-2, (n_parts, -1))
    return by_part.sum(dim=-3)


@cache
def writes_float32(dtype: torch.dtype, device_type: str) -> bool:
    """Try whether torch multiplies half precision matrices into float32 ones.

    Args:
        dtype: Their dtype.
        device_type: A kind of device, such as ``cuda``.

    Returns:
        Whether it does there, and rounds nothing on the way.
    """
    factor = torch.full((1, 16, 16), 1 + 2**-7, dtype=dtype, device=device_type)
    try:
        products = [_into_float32(factor, factor), _into_float32(factor[0], factor[0])]
    except (RuntimeError, TypeError):  # no such kernel here; no such argument in this torch
        return False
    wanted = widen(factor) @ widen(factor)
    return all(bool((product == wanted).all()) for product in products)


def _into_float32(left: Tensor, right: Tensor) -> Tensor:
    multiply_kernel = torch.mm if left.dim() == 2 else torch.bmm
    return multiply_kernel(left, right, out_dtype=torch.float32)
