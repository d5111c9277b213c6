"""Squared weight gradients from a module's inputs and output gradients, never the weight's.

Symbols: N examples, T tokens of one example, I and O input and output features, R rank.
``x`` (N T I) is the input, ``g`` (N T O) the gradient of the summed loss at the output,
``G[n] = sum_t outer(g[n, t], x[n, t])`` (O I) the weight gradient of example n, and
``z = A x^T`` (R N T) the input projected by a LoRA-A. The *row energies* of an example are
``||G[n, o, :]||^2`` for every output feature o; their sum is its squared Frobenius norm.

All products run in float32 at least, whatever the model's dtype.
"""

import torch
from torch import Tensor

from fimlora.measuring.recording.arithmetic import N_BLOCK_ROWS
from fimlora.numerics.products import as_factor, multiply, multiply_wide
from fimlora.shapes import Float

# The fewest tokens of a block of a Gram matrix.
_MIN_BLOCK_TOKENS = 16

# Bits of a float32 factor that bfloat16 units are given, by 8. The error of a Gram matrix is
# averaged over its entries; the few rows of an A cost nothing and are kept whole.
_GRAM_PARTS, _LORA_A_PARTS = 2, 3

# Entries of per-example gradients held at once by the direct product (256 MB in float32).
MAX_DIRECT_ENTRIES = 64 * 2**20


def gram_blocks(x: Float[Tensor, "N T I"]) -> list[Tensor]:
    """Inner products of the tokens of each example: what row energies need of the input.

    A Gram matrix is symmetric, so the blocks above the diagonal are left out and those below
    it doubled; as a quadratic form nothing changes.

    Args:
        x: Module input.

    Returns:
        Rows of blocks from the top, each (N B S): B tokens against the S up to its last.
    """
    x = as_factor(x)
    size = max(_MIN_BLOCK_TOKENS, -(-x.shape[1] // N_BLOCK_ROWS))
    blocks = []
    for start in range(0, x.shape[1], size):
        stop = min(start + size, x.shape[1])
        block = multiply(x[:, start:stop], x[:, :stop].mT)
        block[:, :, :start] *= 2
        blocks.append(block)
    return blocks


def row_energies_by_gram(
    blocks: list[Tensor], g: Float[Tensor, "N T O"]
) -> Float[Tensor, "N O"]:
    """Row energies as the quadratic form ``g_o^T K g_o`` of the Gram matrix K.

    Args:
        blocks: K from `gram_blocks`.
        g: Output gradients.

    Returns:
        ``||G[n, o, :]||^2``.
    """
    g, rows = as_factor(g), blocks[0].new_zeros(g.shape[0], g.shape[2])
    for block in blocks:
        n_tokens, stop = block.shape[1:]
        product = multiply_wide(block, g[:, :stop], n_parts=_GRAM_PARTS)
        rows += product.mul_(g[:, stop - n_tokens : stop]).sum(dim=1)
    return rows.clamp_min_(0)  # rounding can leave a vanishing form just below zero


def row_energies_directly(
    x: Float[Tensor, "N T I"],
    g: Float[Tensor, "N T O"],
    *,
    max_entries: int = MAX_DIRECT_ENTRIES,
) -> Float[Tensor, "N O"]:
    """Row energies from the per-example weight gradients, a bounded number at a time.

    Args:
        x: Module input.
        g: Output gradients.
        max_entries: Entries of the gradients held at once; one example's are whatever they are.

    Returns:
        ``||G[n, o, :]||^2``.
    """
    step = max(1, max_entries // (x.shape[-1] * g.shape[-1]))
    return torch.cat(
        [
            multiply(some_g.mT, some_x).square_().sum(dim=2)
            for some_x, some_g in zip(x.split(step), g.split(step), strict=True)
        ]
    )


def project(A: Float[Tensor, "R I"], x: Float[Tensor, "N T I"]) -> Float[Tensor, "R N T"]:
    """Project a module's input by a LoRA-A.

    Features come last in x and first in the result: with few rows, ``A x^T`` takes half the
    time of ``x A^T``.

    Args:
        A: The LoRA-A.
        x: Module input.

    Returns:
        z, of R numbers per token.
    """
    z = multiply_wide(A, x.flatten(0, 1).T, n_parts=_LORA_A_PARTS)
    return z.view(len(A), *x.shape[:2])


def project_each(
    mixing: Float[Tensor, "N P I"], x: Float[Tensor, "N T I"]
) -> Float[Tensor, "N P T"]:
    """Project every example's input by signs of its own.

    Args:
        mixing: Entries of 1 and -1, which every dtype holds as they are.
        x: Module input.

    Returns:
        z, of P numbers per token.
    """
    return multiply_wide(mixing, x.mT, n_parts=1)


def sketched_row_energies(
    z: Float[Tensor, "N P T"], g: Float[Tensor, "N T O"]
) -> Float[Tensor, "N O"]:
    """Estimate row energies from an input that was projected by signs.

    Args:
        z: The projected input, from `project_each`.
        g: Output gradients.

    Returns:
        The mean over the P rows of the squares of the projected gradient.
    """
    return multiply_wide(z, g, n_parts=_GRAM_PARTS).square_().mean(dim=1)


def lora_b_gradient(
    z: Float[Tensor, "R N T"], g: Float[Tensor, "N T O"], weights: Float[Tensor, " N"]
) -> Float[Tensor, "R O"]:
    """Gradient of ``sum_n weights[n] * loss[n]`` with respect to B, at B = 0 and s = 1.

    Args:
        z: Module input projected by A.
        g: Gradients of the summed per-example losses at the output.
        weights: What each example's loss counts in the loss of the batch.

    Returns:
        ``sum_nt weights[n] outer(z[n, t], g[n, t])``, the transposed gradient.
    """
    z = z * weights[:, None].to(z.dtype)
    return multiply_wide(z.flatten(1), g.flatten(0, 1), n_parts=_LORA_A_PARTS)
