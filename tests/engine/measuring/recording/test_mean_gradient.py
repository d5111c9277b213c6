"""The mean gradient over all examples, kept whole or as a sketch, against the gradients."""

import numpy as np
import pytest
import torch

from fimlora import find_targets, measure
from fimlora.measuring.recording.mean_gradient import MeanGradient
from fimlora.measuring.recording.quantity import SeenCall
from fimlora.measuring.recording.singular_values import N_LEADING
from fimlora.measuring.recording.spectra import Spectra
from fimlora.memory.need import sketch_is_smaller
from fimlora.plan import TargetModule
from support.models import TINY_MODELS, make_batch, tiny
from support.reference import matrix_with, relative_error, weight_gradients_by_example

FLOAT32 = 1e-5
SKETCH = 0.01  # what is promised of each of the leading values
LENGTHS = ([9, 5, 7, 2], [6, 9, 3])


@pytest.mark.parametrize("name", sorted(TINY_MODELS))
def test_spectra_are_those_of_the_mean_gradient(name):
    """Values and energy equal a full SVD of the mean of all examples' own gradients."""
    batches = [make_batch(name, lengths, seed=i) for i, lengths in enumerate(LENGTHS)]
    model, targets = tiny(name)
    gradients = weight_gradients_by_example(model, batches, find_targets(model, targets))

    statistics = measure(model, batches, target_modules=targets, record="spectra")

    for module in statistics.modules:
        G = gradients[module.name].mean(dim=0).double()
        values = torch.linalg.svdvals(G)
        found = torch.as_tensor(statistics.spectra[module.name])
        assert (found - values).abs().max() <= FLOAT32 * values[0]
        assert statistics.mean_energies[module.name] == pytest.approx(
            G.square().sum().item(), rel=FLOAT32
        )
        assert statistics.resolved_shares()[module.name] == pytest.approx(1, rel=FLOAT32)
    assert statistics.unresolved_spectra() == ()


def test_gradients_are_sketched_above_the_memory_bound_and_only_where_it_saves():
    """Query, key and value see one input through the same signs and differ all the same."""
    torch.manual_seed(0)
    big = [TargetModule(name, 1024, d_out) for name, d_out in (("q", 1024), ("v", 1400))]
    small = TargetModule("small", 1024, 8)
    modules = [*big, small]
    x = torch.randn(300, 1024) @ matrix_with(1 / np.arange(1, 301), 1024, 1024).float()
    gs = {m.name: torch.randn(300, m.d_out) for m in modules}
    needed = 4 * sum(m.d_in * m.d_out for m in modules)

    def run(spectra_bytes):
        sums = MeanGradient(modules, spectra_bytes=spectra_bytes)
        for m in modules:
            sums.add(m.name, [SeenCall((x.detach()[None],), gs[m.name][None])])
        sums.commit()
        return Spectra(sums).results(2)

    exact, sketch = run(needed), run(needed - 1)

    assert [sketch_is_smaller(m) for m in modules] == [True, True, False]
    assert [exact["spectrum_errors"][m.name].item() for m in modules] == [0, 0, 0]
    assert np.array_equal(exact["spectra"]["small"], sketch["spectra"]["small"])
    for module in big:
        wanted = torch.linalg.svdvals(gs[module.name].mT @ x / 2)[:N_LEADING]
        found = sketch["spectra"][module.name]
        assert sketch["spectrum_errors"][module.name].item() > 0
        assert relative_error(found[:N_LEADING], wanted) <= SKETCH
        assert found.shape == (64,)
