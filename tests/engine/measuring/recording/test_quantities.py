"""What a run records beside its estimators: nothing else changes, and a file keeps it."""

import numpy as np
import pytest
import torch

from fimlora import Statistics, measure
from support.models import make_batch, tiny
from support.reference import relative_error

BOTH = ("spectra", "moments")


@pytest.mark.parametrize("estimator", ["exact", "sampled", "both"])
def test_recording_more_changes_nothing_else(estimator):
    """The sums of the estimators stay the same to the last bit, and cost is opt-in."""
    model, targets = tiny("llama_gqa_lm")
    batches = [make_batch("llama_gqa_lm", [9, 5, 7])]
    options = {"target_modules": targets, "estimator": estimator}

    plain = measure(model, batches, **options)
    more = measure(model, batches, record=BOTH, **options)

    for group in ("row_energies", "example_energies", "squared_gradients"):
        for module, values in getattr(plain, group).items():
            assert np.array_equal(values, getattr(more, group)[module])
    assert plain.spectra == plain.input_squares == {}
    assert set(more.spectra) == set(more.input_squares) == {m.name for m in more.modules}


def test_micro_batches_and_the_split_into_batches_change_nothing():
    """Sums run over tokens, so how these are grouped is rounding at most."""
    model, targets = tiny("bert_classifier", torch.float64)
    whole = make_batch("bert_classifier", [9, 5, 7, 2])
    halves = [{k: v[:2] for k, v in whole.items()}, {k: v[2:] for k, v in whole.items()}]
    options = {"target_modules": targets, "record": BOTH}

    runs = [
        measure(model, [whole], **options),
        measure(model, [whole], micro_batch_size=1, **options),
        measure(model, halves, **options),
    ]

    for other in runs[1:]:
        for name, values in runs[0].spectra.items():
            assert relative_error(other.spectra[name], values) <= 1e-7
            moments = runs[0].input_squares[name]
            assert relative_error(other.input_squares[name], moments) <= 1e-12


def test_statistics_with_spectra_and_moments_survive_a_file(tmp_path):
    """What is read is what was written, bit by bit."""
    model, targets = tiny("gpt2_lm")
    batches = [make_batch("gpt2_lm", [9, 5])]
    statistics = measure(model, batches, target_modules=targets, record=BOTH)

    statistics.save(tmp_path / "s")
    found = Statistics.load(tmp_path / "s")

    for group in ("spectra", "mean_energies", "spectrum_errors", "input_squares"):
        mine, theirs = getattr(statistics, group), getattr(found, group)
        assert mine.keys() == theirs.keys() != set()
        assert all(np.array_equal(mine[name], theirs[name]) for name in mine)
    assert found.provenance() == statistics.provenance()
