"""Signal and noise of gradients: against every pair of examples, and where the truth is known."""

import numpy as np
import pytest

from fimlora import find_targets, measure, score
from fimlora.methods.coherence import can_part, gradient_noise_scale, part_gradients
from support.gradients import noise, statistics_of
from support.models import make_batch, tiny
from support.reference import weight_gradients_by_example

LENGTHS = ([31, 9, 7, 3], [6, 15, 3])
D_OUT, D_IN = 6, 10


@pytest.mark.parametrize("name", ["bert_classifier", "llama_gqa_lm", "gpt2_lm"])
def test_the_signal_is_the_mean_over_all_pairs_of_examples(name):
    """One backward pass per example through the model, and every pair by itself."""
    model, targets = tiny(name)
    batches = [make_batch(name, lengths, seed=i) for i, lengths in enumerate(LENGTHS)]
    modules = find_targets(model, targets)
    gradients = weight_gradients_by_example(model, batches, modules)

    statistics = measure(
        model, batches, target_modules=targets, record="spectra", estimator="exact"
    )
    parts = part_gradients(statistics)

    for module in modules:
        G = gradients[module.name].double().flatten(1).numpy()
        n = len(G)
        pairs = [G[i] @ G[j] for i in range(n) for j in range(n) if i != j]
        tolerance = 1e-5 * np.square(G).sum(axis=1).mean()
        assert parts[module.name].signal == pytest.approx(np.mean(pairs), abs=tolerance)
        # The variance of every entry, with the divisor that makes it unbiased.
        assert parts[module.name].noise == pytest.approx(
            G.var(axis=0, ddof=1).sum(), abs=tolerance
        )


def classifier_gradients(labels, features, *, frequencies):
    """Of a linear classifier that knows no more than how often each class comes."""
    return (frequencies - np.eye(len(frequencies))[labels])[:, :, None] * features[:, None, :]


def test_labels_that_say_nothing_have_no_signal_on_average():
    """Drawn anew many times, whatever the inputs have in common; the mean gradient has energy."""
    random = np.random.default_rng(0)
    features = random.normal(1.0, 1.0, (40, D_IN))  # inputs are alike, so gradients could be
    frequencies = np.array([0.5, 0.3, 0.2])
    signals, energies = [], []
    for _ in range(600):
        labels = random.choice(3, size=40, p=frequencies)
        G = classifier_gradients(labels, features, frequencies=frequencies)
        statistics = statistics_of({"m": G})
        signals.append(part_gradients(statistics)["m"].signal)
        energies.append(statistics.mean_energies["m"].item())

    error = np.std(signals) / np.sqrt(len(signals))
    assert abs(np.mean(signals)) < 4 * error
    assert np.mean(energies) > 20 * error


def test_permuted_labels_keep_a_share_of_the_energy_that_falls_with_the_examples():
    """Drawn without putting back they repel each other, by less than one part in N - 1."""
    random = np.random.default_rng(1)
    features = random.normal(1.0, 1.0, (40, D_IN))
    labels = np.repeat([0, 1, 2], [20, 12, 8])
    frequencies = np.bincount(labels) / 40
    signals, totals = [], []
    for _ in range(600):
        G = classifier_gradients(random.permutation(labels), features, frequencies=frequencies)
        signals.append(part_gradients(statistics_of({"m": G}))["m"].signal)
        totals.append(np.square(G).sum() / 40)

    error = np.std(signals) / np.sqrt(len(signals))
    assert -np.mean(totals) / 39 - 4 * error < np.mean(signals) < 4 * error


def test_labels_that_follow_the_inputs_have_a_signal():
    """The same classifier, and no other order of the same labels comes near."""
    random = np.random.default_rng(2)
    features = random.normal(0.0, 1.0, (40, D_IN))
    labels = features[:, :3].argmax(axis=1)
    frequencies = np.bincount(labels) / 40

    def signal(labels):
        G = classifier_gradients(labels, features, frequencies=frequencies)
        return part_gradients(statistics_of({"m": G}))["m"].signal

    of_chance = [signal(random.permutation(labels)) for _ in range(200)]
    assert signal(labels) > max(of_chance)


def test_the_noise_scale_is_that_of_known_gradients():
    """Over all, and by kind: each layer of a kind counts with its energy."""
    signals = {"layers.0.q": 1.0, "layers.1.q": 3.0, "layers.0.v": 0.5}
    G = {
        name: np.full((4000, D_OUT, D_IN), value) + 2 * noise(4000, D_OUT, D_IN, seed=i)
        for i, (name, value) in enumerate(signals.items())
    }

    found = gradient_noise_scale(statistics_of(G))

    assert found["by_kind"] == {
        "q": pytest.approx(2 * 4 / (1 + 9), rel=0.02),
        "v": pytest.approx(4 / 0.25, rel=0.02),
    }
    assert found["all"] == pytest.approx(3 * 4 / (1 + 9 + 0.25), rel=0.02)
    assert "no best batch size" in found["note"]


def test_without_a_signal_there_is_no_noise_scale():
    """Gradients that cancel each other are no huge figure and no negative one."""
    G = noise(1, D_OUT, D_IN, seed=0)

    found = gradient_noise_scale(statistics_of({"m": np.concatenate([G, -G])}))

    assert (found["all"], found["by_kind"]) == (None, {"m": None})


def test_the_noise_scale_is_told_where_both_energies_are_known():
    """By whatever method the plan is."""
    statistics = statistics_of({"m": 1 + noise(9, D_OUT, D_IN, seed=0)})

    told = [
        score(statistics, m).provenance["gradient_noise_scale"] for m in ("fim", "spectral")
    ]

    assert told[0] == told[1] == gradient_noise_scale(statistics)
    for facts in ({"mean_energies": {}}, {"example_energies": {}}, {"n_examples": 1}):
        fewer = statistics_of({"m": noise(9, D_OUT, D_IN, seed=0)})
        assert can_part(fewer)
        for name, value in facts.items():
            object.__setattr__(fewer, name, value)
        assert not can_part(fewer)
