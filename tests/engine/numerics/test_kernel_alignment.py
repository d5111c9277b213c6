"""The two estimates of linear CKA, against their definitions and on data of known alikeness."""

import numpy as np
import pytest

from fimlora.numerics.kernel_alignment import linear_alignment


def normal(*shape, seed):
    return np.random.default_rng(seed).normal(size=shape)


def biased_by_definition(X, Y):
    """``||X'Y||^2 / (||X'X|| ||Y'Y||)`` of centered features: no kernel is formed."""
    X, Y = X - X.mean(axis=0), Y - Y.mean(axis=0)
    return np.linalg.norm(X.T @ Y) ** 2 / (np.linalg.norm(X.T @ X) * np.linalg.norm(Y.T @ Y))


def hsic_by_definition(X, Y):
    """Song et al.'s unbiased sum, entry by entry."""
    K, L = X @ X.T, Y @ Y.T
    n, ones = len(K), np.ones(len(K))
    for kernel in (K, L):
        for i in range(n):
            kernel[i, i] = 0
    total = np.trace(K @ L)
    total += (ones @ K @ ones) * (ones @ L @ ones) / ((n - 1) * (n - 2))
    total -= 2 / (n - 2) * (ones @ K @ L @ ones)
    return total / (n * (n - 3))


def debiased_by_definition(X, Y):
    return hsic_by_definition(X, Y) / np.sqrt(
        hsic_by_definition(X, X) * hsic_by_definition(Y, Y)
    )


@pytest.mark.parametrize(("n", "d"), [(4, 3), (5, 30), (40, 7), (33, 64)])
def test_both_estimates_are_those_of_their_definitions(n, d):
    """Of features that are neither alike nor independent, and not centered."""
    X = 3 + normal(n, d, seed=n)
    Y = X @ normal(d, 11, seed=1) + 2 * normal(n, 11, seed=2) - 5

    found = linear_alignment(X, Y)

    assert found.biased == pytest.approx(biased_by_definition(X, Y), rel=1e-10)
    assert found.debiased == pytest.approx(debiased_by_definition(X, Y), rel=1e-8)


def test_independent_features_look_alike_to_the_biased_estimate_alone():
    """128 examples of 4,096 Gaussian features: 0.97 and next to nothing."""
    found = [
        linear_alignment(normal(128, 4096, seed=i), normal(128, 4096, seed=9 + i))
        for i in range(5)
    ]

    assert np.mean([f.biased for f in found]) == pytest.approx(0.97, abs=0.003)
    assert abs(np.mean([f.debiased for f in found])) < 0.02
    assert min(f.debiased for f in found) < max(f.debiased for f in found)


def test_a_rotation_and_a_scale_change_nothing():
    """And what is alike is 1."""
    X = normal(20, 8, seed=0)
    Q, _ = np.linalg.qr(normal(8, 8, seed=1))

    assert linear_alignment(X, 7 * X @ Q + 3) == pytest.approx((1.0, 1.0), abs=1e-12)


def test_examples_that_do_not_differ_are_like_nothing():
    """As the first token's embedding is the same in all of them; up to rounding."""
    X = np.repeat(normal(1, 8, seed=0), 20, axis=0)
    Y = normal(20, 8, seed=1)

    assert linear_alignment(X, Y) == (0.0, 0.0)
    assert linear_alignment(Y, X * (1 + 1e-7 * normal(20, 8, seed=2))) == (0.0, 0.0)


def test_too_few_examples_have_no_debiased_estimate():
    """It divides by N - 3."""
    with pytest.raises(ValueError, match=r"3 examples: .* at least 4"):
        linear_alignment(normal(3, 2, seed=0), normal(3, 2, seed=1))
