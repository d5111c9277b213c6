"""The products behind the statistics, each against the gradient it avoids."""

import pytest
import torch

from fimlora.measuring.recording.arithmetic import gram_is_cheaper
from fimlora.measuring.recording.energies import (
    gram_blocks,
    lora_b_gradient,
    project,
    row_energies_by_gram,
    row_energies_directly,
)

FLOAT64 = 1e-12


def make(n, t, i, o):
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(n, t, features, generator=generator, dtype=torch.float64)
        for features in (i, o)
    )


@pytest.mark.parametrize("n_tokens", [1, 2, 15, 16, 17, 63, 64, 65, 130])
@pytest.mark.parametrize("way", ["gram", "direct"])
def test_row_energies_are_those_of_the_weight_gradient(n_tokens, way):
    """At and around every border between blocks."""
    x, g = make(3, n_tokens, 5, 7)

    if way == "gram":
        found = row_energies_by_gram(gram_blocks(x), g)
    else:
        found = row_energies_directly(x, g)

    wanted = torch.einsum("nto,nti->noi", g, x).square().sum(dim=2)
    torch.testing.assert_close(found, wanted, rtol=FLOAT64, atol=0)


def test_the_direct_product_in_several_steps():
    """However many gradients are held at once, the result is the same."""
    x, g = make(5, 4, 3, 2)
    wanted = row_energies_directly(x, g)

    found = row_energies_directly(x, g, max_entries=13)  # two examples a step

    torch.testing.assert_close(found, wanted, rtol=FLOAT64, atol=0)


def test_gram_blocks_leave_out_what_symmetry_gives():
    """Of 16 blocks 10 are there; those off the diagonal are doubled."""
    x, _ = make(2, 64, 5, 1)
    K = torch.bmm(x, x.mT)

    blocks = gram_blocks(x)

    assert [tuple(block.shape) for block in blocks] == [
        (2, 16, 16), (2, 16, 32), (2, 16, 48), (2, 16, 64),
    ]  # fmt: skip
    torch.testing.assert_close(blocks[1][:, :, 16:], K[:, 16:32, 16:32])
    torch.testing.assert_close(blocks[1][:, :, :16], 2 * K[:, 16:32, :16])


def test_energies_that_vanish_are_not_negative():
    """Gradients that cancel over the tokens leave rounding, which must not flip the sign."""
    x = torch.full((1, 50, 3), 1e3) + torch.randn(1, 50, 3) * 1e-6
    g = torch.randn(1, 50, 400)
    g -= g.mean(dim=1, keepdim=True)

    assert row_energies_by_gram(gram_blocks(x), g).min() >= 0


@pytest.mark.parametrize(
    ("n_tokens", "d_in", "d_out", "cheaper"),
    [(128, 384, 1536, True), (4096, 384, 384, False), (1, 2, 2, True), (100, 6, 6, False)],
)
def test_the_cheaper_way_follows_from_the_shape(n_tokens, d_in, d_out, cheaper):
    """Few tokens, wide matrices: by Gram matrix. Many tokens, narrow ones: directly."""
    assert gram_is_cheaper(n_tokens, d_in, d_out) is cheaper


def test_lora_b_gradient_is_the_weight_gradient_through_a():
    """``sum_n weights[n] G[n] A^T``, transposed."""
    x, g = make(3, 4, 5, 7)
    A, weights = torch.randn(2, 5), torch.tensor([0.5, 0.2, 0.3])

    found = lora_b_gradient(project(A, x), g, weights)

    wanted = torch.einsum("n,nto,nti,ri->ro", weights.double(), g, x, A.double())
    torch.testing.assert_close(found, wanted, rtol=FLOAT64, atol=FLOAT64)


def test_half_precision_is_widened_before_it_is_multiplied():
    """The products of bfloat16 tensors are exactly those of the same numbers in float32."""
    x, g = (tensor.bfloat16() for tensor in make(2, 20, 5, 7))
    A, weights = torch.randn(2, 5), torch.tensor([0.5, 0.5])

    wide_x, wide_g = x.float(), g.float()

    assert torch.equal(
        row_energies_by_gram(gram_blocks(x), g),
        row_energies_by_gram(gram_blocks(wide_x), wide_g),
    )
    assert torch.equal(row_energies_directly(x, g), row_energies_directly(wide_x, wide_g))
    assert torch.equal(
        lora_b_gradient(project(A, x), g, weights),
        lora_b_gradient(project(A, wide_x), wide_g, weights),
    )
