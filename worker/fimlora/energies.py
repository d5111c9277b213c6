"""Squared weight gradients from a module's inputs and output gradients, never the weight's.

Symbols: N examples, T tokens of one example, I and O input and output features, R rank.
``x`` (N T I) is the input, ``g`` (N T O) the gradient of the summed loss at the output,
``G[n] = sum_t outer(g[n, t], x[n, t])`` (O I) the weight gradient of example n, and
``z = x A^T`` (N T R) the input seen through a LoRA-A. The *row energies* of an example are
``||G[n, o, :]||^2`` for every output feature o; their sum is its squared Frobenius norm.

All products run in float32 at least, whatever the model's dtype.
"""

import torch
from torch import Tensor

from fimlora.shapes import Float

# Entries of per-example gradients held at once by the direct product (256 MB in float32).
_MAX_DIRECT_ENTRIES = 64 * 2**20


def widen(tensor: Tensor) -> Tensor:
    """Lift half precision to float32; wider types stay as they are.

    Returns:
        The tensor itself when it is wide enough already.
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def gram_is_cheaper(n_tokens: int, d_in: int, d_out: int) -> bool:
    """Compare ``T^2 (I + O)`` multiplications by Gram matrix with ``T I O`` directly.

    Returns:
        Whether the Gram matrix costs less for this shape.
    """
    return n_tokens * (d_in + d_out) < d_in * d_out


def token_gram(x: Float[Tensor, "N T I"]) -> Float[Tensor, "N T T"]:
    """Inner products of every pair of tokens of an example.

    Args:
        x: Module input.

    Returns:
        ``K[n] = x[n] x[n]^T``, all that the row energies need to know of the input.
    """
    x = widen(x)
    return torch.bmm(x, x.mT)


def row_energies_by_gram(
    K: Float[Tensor, "N T T"], g: Float[Tensor, "N T O"]
) -> Float[Tensor, "N O"]:
    """Row energies as the quadratic form ``g_o^T K g_o``.

    Args:
        K: Gram matrices from `token_gram`.
        g: Output gradients.

    Returns:
        ``||G[n, o, :]||^2``.
    """
    g = widen(g)
    rows = torch.bmm(K, g).mul_(g).sum(dim=1)
    return rows.clamp_min_(0)  # rounding can leave a vanishing form just below zero


def row_energies_directly(
    x: Float[Tensor, "N T I"], g: Float[Tensor, "N T O"]
) -> Float[Tensor, "N O"]:
    """Row energies from the per-example weight gradients, a bounded number at a time.

    Args:
        x: Module input.
        g: Output gradients.

    Returns:
        ``||G[n, o, :]||^2``.
    """
    x, g = widen(x), widen(g)
    step = max(1, _MAX_DIRECT_ENTRIES // (x.shape[-1] * g.shape[-1]))
    return torch.cat(
        [
            torch.bmm(some_g.mT, some_x).square_().sum(dim=2)
            for some_x, some_g in zip(x.split(step), g.split(step), strict=True)
        ]
    )


def lora_b_gradient(
    z: Float[Tensor, "N T R"], g: Float[Tensor, "N T O"], weights: Float[Tensor, " N"]
) -> Float[Tensor, "O R"]:
    """Gradient of ``sum_n weights[n] * loss[n]`` with respect to B, at B = 0 and s = 1.

    Args:
        z: Module input seen through A.
        g: Gradients of the summed per-example losses at the output.
        weights: What each example's loss counts in the loss of the batch.

    Returns:
        ``sum_nt weights[n] outer(g[n, t], z[n, t])``.
    """
    z = z * weights[:, None, None]
    return widen(g).flatten(0, 1).mT @ z.flatten(0, 1)
