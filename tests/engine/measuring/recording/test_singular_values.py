"""Singular values of sketched gradients, against a full SVD of the gradients themselves."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from fimlora import find_targets
from fimlora.measuring.recording.mean_gradient import Signs, SketchedSum
from fimlora.measuring.recording.singular_values import N_LEADING, exact_spectrum
from fimlora.plan import TargetModule
from fimlora.statistics.statistics import RESOLVED_ERROR
from support.models import make_batch, minilm_path
from support.reference import matrix_with, weight_gradients_by_example

SKETCH = 0.01  # what is promised of each of the leading values


def sketched(G, *, width=256, n_parts=1):
    """Feed a matrix to a sketch as if tokens had made it, in several batches."""
    d_out, d_in = G.shape
    g, x = G.T, torch.eye(d_in, dtype=G.dtype)  # one token for each input feature
    sketch = SketchedSum(TargetModule("m", d_in, d_out), Signs(width))
    for some_x, some_g in zip(x.chunk(n_parts), g.chunk(n_parts), strict=True):
        sketch.add(some_x, some_g)
        for staged in sketch.sums():
            staged.commit()
    return sketch.spectrum(1)


J = np.arange(1, 641)
DECAYS = {
    "one over j": 1 / J,
    "j to the -1.5": J**-1.5,
    "exponential": 0.95**J,
    "steps": np.where(J <= 8, 1.0, np.where(J <= 40, 0.3, 1e-3)),
}


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("shape", [(960, 640), (640, 960)], ids=["tall", "wide"])
def test_the_sketch_is_within_a_hundredth_of_exact_svd(decay, shape):
    """Each of the leading 16 values, where gradients decay as real ones do."""
    torch.manual_seed(0)
    G = matrix_with(DECAYS[decay], *shape)

    spectrum = sketched(G, n_parts=3)

    wanted = torch.linalg.svdvals(G)[:N_LEADING]
    assert ((spectrum.values[:N_LEADING] - wanted).abs() / wanted).max() <= SKETCH
    assert spectrum.error <= RESOLVED_ERROR
    assert spectrum.energy == pytest.approx(G.square().sum().item(), rel=SKETCH)


@pytest.mark.parametrize("power", [0.0, 0.5, 0.75, 1.0, 1.5])
def test_the_stated_error_covers_the_error_or_says_unresolved(power):
    """Flat spectra are marked; the energy is right for them too."""
    torch.manual_seed(1)
    G = matrix_with(J**-power, 960, 640)
    wanted = torch.linalg.svdvals(G)[:N_LEADING].square().sum().item()

    spectrum = sketched(G)

    error = abs(spectrum.values[:N_LEADING].square().sum().item() / wanted - 1)
    assert error <= spectrum.error or spectrum.error > RESOLVED_ERROR
    assert (spectrum.error > RESOLVED_ERROR) == (power < 0.75)
    assert spectrum.energy == pytest.approx(G.square().sum().item(), rel=0.05)


def test_a_gradient_of_few_tokens_is_sketched_to_rounding():
    """Its rank is below the width of the sketch, so nothing is in the tail."""
    torch.manual_seed(0)
    G = matrix_with(J[:20] ** -0.5, 960, 640)

    spectrum = sketched(G)

    wanted = torch.linalg.svdvals(G)
    assert (spectrum.values[:20] - wanted[:20]).abs().max() <= 1e-7
    assert spectrum.values[20:].max() <= 1e-7
    assert spectrum.error <= 0.001 + 1e-9


def test_sketches_of_a_pretrained_models_gradients():
    """Each of the leading values of MiniLM's gradients is within a hundredth."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(minilm_path(), num_labels=3)
    batches = [make_batch("bert_classifier", [24] * 8, seed=i) for i in range(2)]
    modules = find_targets(model, ["output.dense", "intermediate.dense"])[:4]
    gradients = weight_gradients_by_example(model, batches, modules)

    for module in modules:
        G = gradients[module.name].mean(dim=0).double()
        spectrum, wanted = sketched(G), exact_spectrum(G)
        leading = wanted.values[:N_LEADING]
        error = (spectrum.values[:N_LEADING] - leading).abs() / leading
        assert error.max() <= SKETCH, (module.name, error)
        assert spectrum.error <= RESOLVED_ERROR
        assert spectrum.energy == pytest.approx(wanted.energy, rel=SKETCH)
