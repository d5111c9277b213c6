"""Spectra above their noise: pure noise has none, and a planted signal is found."""

import numpy as np
import pytest
import torch

from fimlora import TargetModule, allocate, score
from fimlora.errors import InvalidOption
from fimlora.methods.spectral_denoised import noise_edge
from support.gradients import noise, statistics_of
from support.reference import matrix_with

N = 20
SHAPES = [(48, 48), (24, 120), (120, 24)]  # (O, I)


def left_of(gradients):
    """What is above the edge, per module."""
    return score(statistics_of(gradients), "spectral-denoised").spectra


@pytest.mark.parametrize(("d_out", "d_in"), SHAPES)
def test_pure_noise_has_nothing_above_its_edge(d_out, d_in):
    """But in one draw of a hundred; and the edge is no higher than that takes."""
    draws = {f"m{i}": noise(N, d_out, d_in, seed=i) for i in range(150)}
    statistics = statistics_of(draws)

    left = score(statistics, "spectral-denoised").spectra

    above = sum(values.any() for values in left.values())
    assert above <= 6  # 1.5 are expected
    module, energy = TargetModule("m", d_in, d_out), d_in * d_out / N
    largest = [statistics.spectra[name][0] ** 2 for name in draws]
    assert min(largest) > 0.7 * noise_edge(module, energy)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize(("d_out", "d_in"), SHAPES)
def test_a_planted_signal_is_found_with_its_rank(d_out, d_in, k):
    """Values well above the noise, in as many directions, and no other."""
    torch.manual_seed(k)
    edge = noise_edge(TargetModule("m", d_in, d_out), d_in * d_out / N) ** 0.5
    signal = matrix_with([2.5 * edge + i for i in range(k)], d_out, d_in).numpy()

    left = left_of({"m": signal + noise(N, d_out, d_in, seed=k)})["m"]

    assert np.count_nonzero(left) == k


def test_what_is_left_is_the_square_above_the_edge():
    """By hand: the noise of the mean is that of one example over N, without bias."""
    G = 0.3 + noise(N, 8, 8, seed=0)
    variance = G.var(axis=0, ddof=1).sum() / N

    squares = np.square(np.linalg.svd(G.mean(axis=0), compute_uv=False))
    edge = noise_edge(TargetModule("m", 8, 8), variance)

    wanted = np.sqrt(np.maximum(0, squares - edge))
    assert wanted.any()
    assert left_of({"m": G})["m"] == pytest.approx(wanted, rel=1e-9)


def test_ranks_go_where_something_is_above_the_noise():
    """The module of noise alone keeps the floor, and is named."""
    signal = matrix_with([9.0, 8.0, 7.0, 6.0], 24, 24).numpy()
    G = {"noise": 3 * noise(N, 24, 24, seed=0), "signal": signal + noise(N, 24, 24, seed=1)}

    scores = score(statistics_of(G), "spectral-denoised")
    plan = allocate(scores, 2, r_min=0, r_max=4)

    assert scores.rule == "spectral"
    assert plan.ranks == {"noise": 0, "signal": 4}
    assert scores.provenance["within_noise"] == ["noise"]


def test_examples_that_all_agree_have_no_noise():
    """Then it is the spectrum as recorded."""
    statistics = statistics_of({"m": np.repeat(noise(1, 6, 9, seed=0), 5, axis=0)})

    left = score(statistics, "spectral-denoised").spectra["m"]

    assert left == pytest.approx(statistics.spectra["m"], rel=1e-6, abs=1e-6)


def test_the_noise_of_one_example_is_not_known():
    """It is refused by name."""
    with pytest.raises(InvalidOption, match="compares examples, and there is one"):
        score(statistics_of({"m": noise(1, 4, 6, seed=0)}), "spectral-denoised")
