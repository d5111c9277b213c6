"""Coherent gradient energy as a score."""

import numpy as np
import pytest

from fimlora import allocate, measure, score
from fimlora.errors import InvalidOption
from fimlora.methods.coherence import part_gradients
from support.gradients import noise, statistics_of
from support.models import make_batch, tiny

ALIKE = np.repeat(noise(1, 4, 6, seed=1), 7, axis=0)


def test_examples_that_agree_score_as_fim_does():
    """There is no noise to tell apart, and the unit is the same."""
    statistics = statistics_of({"m": ALIKE})

    fim, coherent = (score(statistics, method).by_module for method in ("fim", "coherent"))

    assert coherent["m"] == pytest.approx(fim["m"], rel=1e-12)


def test_a_score_is_the_signal_per_parameter():
    """By hand, of modules of unlike shape: s^2 / (3 d_in d_out) of it."""
    G = {"wide": 1 + noise(7, 4, 60, seed=0), "small": 1 + noise(7, 4, 6, seed=1)}
    statistics = statistics_of(G, scale=3)

    found = score(statistics, "coherent").by_module

    for name, gradients in G.items():
        signal = part_gradients(statistics)[name].signal
        assert found[name] == pytest.approx(9 * signal / (3 * gradients[0].size))
    assert found["wide"] == pytest.approx(9 / 3, rel=0.1)  # every entry agrees on 1


def test_noise_is_no_score_however_loud():
    """A module that `fim` puts first falls behind one on which examples agree."""
    loud, quiet = 10 * noise(200, 8, 8, seed=0), 0.5 + noise(200, 8, 8, seed=1)
    statistics = statistics_of({"loud": loud, "quiet": quiet})

    fim, coherent = (score(statistics, method).by_module for method in ("fim", "coherent"))

    assert fim["loud"] > 50 * fim["quiet"]
    assert coherent["quiet"] > coherent["loud"]


def test_an_estimate_below_zero_counts_as_none_and_is_kept():
    """As it was, by name, with the share of modules that have one."""
    G = noise(1, 4, 6, seed=0)
    statistics = statistics_of({"against": np.concatenate([G, -G]), "alike": ALIKE[:2]})

    scores = score(statistics, "coherent")

    assert scores.by_module["against"] == 0
    [(name, raw)] = scores.provenance["negative_estimates"].items()
    assert name == "against"
    assert raw == pytest.approx(-4 * np.square(G).sum() / (3 * G.size))
    assert scores.provenance["negative_share"] == 0.5


def test_nothing_coherent_at_all_gives_everyone_the_same():
    """A plan that says nothing is uniform, and is no error."""
    G = noise(1, 8, 8, seed=0)
    scores = score(statistics_of(dict.fromkeys("abc", np.concatenate([G, -G]))), "coherent")

    plan = allocate(scores, 4)

    assert set(plan.ranks.values()) == {4}
    assert plan.provenance["negative_share"] == 1


def test_sketched_energies_give_nearly_the_same():
    """The sketch is off by a few percent of `fim`, of which a score sees one part in N."""
    model, targets = tiny("llama_gqa_lm")
    batches = [make_batch("llama_gqa_lm", [31, 9, 7, 3, 15, 20], seed=i) for i in range(4)]
    options = {"target_modules": targets, "record": "spectra"}

    exact, sketched = (
        score(measure(model, batches, estimator=estimator, rank=16, **options), "coherent")
        for estimator in ("exact", "sketched")
    )

    fim = score(measure(model, batches, estimator="exact", **options)).by_module
    for name, value in exact.by_module.items():
        assert sketched.by_module[name] == pytest.approx(value, abs=0.3 / 24 * fim[name])


def test_one_example_has_no_pair():
    """It is refused, and not divided by zero."""
    with pytest.raises(InvalidOption, match=r"compares examples, and there is one; .* two"):
        score(statistics_of({"m": noise(1, 4, 6, seed=0)}), "coherent")


def test_energies_of_examples_are_asked_for_by_name():
    """The estimator decides whether they are recorded."""
    statistics = statistics_of({"m": noise(3, 4, 6, seed=0)})
    object.__setattr__(statistics, "example_energies", {})

    with pytest.raises(InvalidOption, match=r"needs the energy of each example.*estimator="):
        score(statistics, "coherent")
