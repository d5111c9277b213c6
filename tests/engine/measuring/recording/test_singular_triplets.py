"""Leading singular triplets, exact and sketched, against a full SVD in float64."""

import numpy as np
import pytest
import torch

from fimlora.measuring.recording.mean_gradient import ExactSum, Signs, SketchedSum
from fimlora.measuring.recording.singular_triplets import exact_triplets
from fimlora.plan import TargetModule
from support.reference import matrix_with

SHAPES = pytest.mark.parametrize("shape", [(960, 640), (640, 960)], ids=["tall", "wide"])
J = np.arange(1, 641)


def sketched(G):
    """Feed a matrix to a sketch as if tokens had made it."""
    d_out, d_in = G.shape
    sketch = SketchedSum(TargetModule("m", d_in, d_out), Signs(256))
    sketch.add(torch.eye(d_in, dtype=G.dtype), G.T)
    for pending in sketch.sums():
        pending.commit()
    return sketch.triplets(2)


def captured(G, left, right):
    """Energy of a matrix between two orthonormal bases, over all of it."""
    return (left.mT.double() @ G @ right.mT.double()).square().sum().item()


@SHAPES
def test_exact_triplets_are_those_of_a_full_svd(shape):
    """Values to rounding, vectors up to the sign that is fixed, and orthonormal."""
    torch.manual_seed(0)
    G = matrix_with(1 / J, *shape)
    U, S, Vh = torch.linalg.svd(G, full_matrices=False)

    found = exact_triplets(G)

    signs = torch.sign((Vh[:64] * found.right).sum(dim=1))
    assert (found.values - S[:64]).abs().max() <= 1e-12
    assert (found.right - signs[:, None] * Vh[:64]).abs().max() <= 1e-9
    assert (found.left - signs * U[:, :64]).abs().max() <= 1e-9
    assert (found.right.gather(1, found.right.abs().argmax(1, keepdim=True)) > 0).all()
    assert found.error == 0


@SHAPES
def test_a_gradient_of_few_directions_has_no_others(shape):
    """Vectors beyond its rank would be rounding: they are zero."""
    torch.manual_seed(0)
    G = matrix_with([1.0, 0.5, 1e-4], *shape)

    found = exact_triplets(G.float())

    assert found.values[:3].tolist() == pytest.approx([1, 0.5, 1e-4], rel=1e-3)
    assert not found.values[3:].any()
    assert not found.left[:, 3:].any()
    assert not found.right[3:].any()
    assert torch.allclose(found.left[:, :3].mT @ found.left[:, :3], torch.eye(3).double())
    assert torch.allclose((found.left * found.values) @ found.right, G, atol=1e-6)


def test_nothing_has_no_direction():
    """A module that only zeros reached."""
    found = exact_triplets(torch.zeros(5, 7))

    assert not found.values.any()
    assert not found.left.any()
    assert not found.right.any()


@SHAPES
@pytest.mark.parametrize("rank", [4, 16, 32])
def test_sketched_directions_capture_what_the_best_ones_do(shape, rank):
    """The stated error covers what they miss of the best energy, for falling gradients."""
    torch.manual_seed(1)
    G = matrix_with(1 / J, *shape)
    best = torch.linalg.svdvals(G)[:rank].square().sum().item()

    found = sketched(2 * G)  # the sum of two examples

    error = 1 - captured(G, found.left[:, :rank], found.right[:rank]) / best
    assert -1e-9 <= error <= 3 * found.error <= 0.02
    assert torch.allclose(found.left.mT @ found.left, torch.eye(64).double(), atol=1e-9)
    assert torch.allclose(found.right @ found.right.mT, torch.eye(64).double(), atol=1e-9)


@SHAPES
def test_a_sketch_of_few_tokens_is_exact(shape):
    """A gradient of lower rank than the sketch is wide is found again, matrix and all."""
    torch.manual_seed(2)
    G = matrix_with(J[:20] ** -0.5, *shape)

    found = sketched(2 * G)

    assert torch.allclose((found.left * found.values) @ found.right, G, atol=1e-7)
    assert not found.left[:, 20:].any()


def test_an_exact_sum_gives_the_triplets_of_its_mean():
    """Over the examples that were seen."""
    torch.manual_seed(3)
    x, g = torch.randn(30, 6, dtype=torch.float64), torch.randn(30, 9, dtype=torch.float64)
    gradient = ExactSum()
    gradient.add(x, g)
    for pending in gradient.sums():
        pending.commit()

    found = gradient.triplets(3)

    assert torch.allclose((found.left * found.values) @ found.right, g.mT @ x / 3)
