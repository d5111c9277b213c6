"""Pairs of matrices at another rank: growth is exact, shrinking is the nearest, rotations are told."""

import numpy as np
import pytest
import torch

from fimlora.adapter.resizing import resize_factors


def factors(r=5, d_in=11, d_out=7, seed=0):
    draws = torch.Generator().manual_seed(seed)
    sizes = ((r, d_in), (d_out, r), (9, d_in))
    return [torch.randn(size, generator=draws) for size in sizes]


def test_growth_keeps_what_is_there_bit_by_bit():
    """Leading rows and columns are the old ones, new columns of B are zero."""
    A, B, drawn = factors()

    found = resize_factors(A, B, drawn)

    assert torch.equal(found.A[:5], A)
    assert torch.equal(found.B[:, :5], B)
    assert torch.equal(found.A[5:], drawn[5:])
    assert not found.B[:, 5:].any()
    assert (found.kept, found.rotation, found.error) == (5, None, 0.0)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_shrinking_cuts_the_least_and_says_how_much(rank):
    """The best of that rank by numpy's own decomposition, and its error."""
    A, B, drawn = factors()

    found = resize_factors(A, B, drawn[:rank])

    U, S, Vh = np.linalg.svd((B.double() @ A.double()).numpy())
    best = (U[:, :rank] * S[:rank]) @ Vh[:rank]
    np.testing.assert_allclose((found.B.double() @ found.A.double()).numpy(), best, atol=1e-5)
    assert found.error == pytest.approx(np.linalg.norm(S[rank:]) / np.linalg.norm(S), rel=1e-6)


@pytest.mark.parametrize("rank", [1, 3])
def test_the_rotation_makes_the_new_rows_of_the_old_ones(rank):
    """A' = M A, B' = B N and M N = 1; gradients of the new pair are those of the old one, mixed."""
    A, B, drawn = (t.double() for t in factors())

    found = resize_factors(A, B, drawn[:rank])
    M, N = found.rotation.M, found.rotation.N

    torch.testing.assert_close(found.A, M @ A)
    torch.testing.assert_close(found.B, B @ N)
    torch.testing.assert_close(M @ N, torch.eye(rank, dtype=torch.float64))
    G = torch.randn(7, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(found.B.T @ G, N.T @ (B.T @ G))
    torch.testing.assert_close(G @ found.A.T, (G @ A.T) @ M.T)


def test_a_rank_that_would_never_train_is_drawn_anew():
    """Where B A has fewer directions than ranks are kept, the rest gets rows that can learn."""
    A, B, drawn = factors()
    B[:, 2:] = 0

    found = resize_factors(A, B, drawn[:4])

    assert found.kept == 2
    assert found.error < 1e-6
    assert torch.equal(found.A[2:], drawn[2:4])
    assert not found.B[:, 2:].any()
    torch.testing.assert_close(found.B @ found.A, B @ A, rtol=0, atol=1e-5)


def test_an_untrained_pair_keeps_its_leading_rows():
    """At B = 0 there is nothing to be near to."""
    A, B, drawn = factors()

    found = resize_factors(A, torch.zeros_like(B), drawn[:3])

    assert torch.equal(found.A, A[:3])
    assert found.rotation is None


def test_what_was_drawn_is_left_alone():
    """Growth writes old rows into a copy."""
    A, B, drawn = factors()
    before = drawn.clone()

    resize_factors(A, B, drawn)

    assert torch.equal(drawn, before)


def test_where_nothing_was_nothing_is_cut():
    """A is zero and B is not: the update is zero, and so is what is gone of it."""
    A, B, drawn = factors()

    found = resize_factors(torch.zeros_like(A), B, drawn[:2])

    assert found.error == 0
    assert torch.equal(found.A, drawn[:2])
    assert not found.B.any()
