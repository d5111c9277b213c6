"""Factors and projections of gradients as a run records them, against autograd in full."""

import numpy as np
import pytest
import torch

from fimlora import Statistics, find_targets, measure
from fimlora.errors import InvalidStatistics
from fimlora.numerics.seeded_draws import draw_lora_a
from fimlora.statistics.groups import N_DIRECTIONS
from support.models import TINY_MODELS, make_batch, tiny
from support.reference import relative_error, weight_gradients_by_example

FLOAT32 = 1e-5
LENGTHS = ([30, 9, 7, 3], [6, 21, 3])
RECORD = ("gradient_factors", "projected_gradient")


def measured(name, **options):
    """A run over uneven batches, and the gradients of its examples by autograd."""
    batches = [make_batch(name, lengths, seed=i) for i, lengths in enumerate(LENGTHS)]
    model, targets = tiny(name)
    gradients = weight_gradients_by_example(model, batches, find_targets(model, targets))
    options = {"target_modules": targets, "record": RECORD, "seed": 5} | options
    return measure(model, batches, **options), gradients


@pytest.mark.parametrize("options", [{}, {"micro_batch_size": 2}], ids=["whole", "parts"])
@pytest.mark.parametrize("name", sorted(TINY_MODELS))
def test_factors_give_the_mean_gradient_back(name, options):
    """All of a small one, and its best part of each lower rank."""
    statistics, gradients = measured(name, **options)

    for module in statistics.modules:
        G = gradients[module.name].mean(dim=0).double()
        left, values, right, error = (
            torch.as_tensor(statistics.quantities[f"gradient_{kind}"][module.name])
            for kind in ("left", "values", "right", "errors")
        )
        assert relative_error((left * values) @ right, G) <= FLOAT32, module.name
        U, S, Vh = torch.linalg.svd(G, full_matrices=False)
        best = (U[:, :2] * S[:2]) @ Vh[:2]
        assert relative_error((left[:, :2] * values[:2]) @ right[:2], best) <= 1e-3
        assert error.item() == 0
        assert left.dtype == right.dtype == torch.float32


@pytest.mark.parametrize("options", [{}, {"micro_batch_size": 2}], ids=["whole", "parts"])
@pytest.mark.parametrize("name", sorted(TINY_MODELS))
def test_projections_are_those_of_the_summed_gradient(name, options):
    """By the A that is written for the seed, whose leading rows every rank has."""
    statistics, gradients = measured(name, **options)

    assert statistics.seed == 5
    for module in statistics.modules:
        A = draw_lora_a(module, rank=N_DIRECTIONS, seed=5).double()
        wanted = gradients[module.name].sum(dim=0).double() @ A.mT
        found = statistics.quantities["gradient_projected"][module.name]
        assert relative_error(found, wanted) <= FLOAT32, module.name
        assert torch.equal(draw_lora_a(module, rank=3, seed=5), A[:3].float())


def test_null_and_halves_carry_none_of_them():
    """They would triple what is kept; nothing else of these parts changes."""
    options = {"null": True, "halves": True}
    plain, _ = measured("bert_classifier", record="spectra", **options)
    more, _ = measured("bert_classifier", record=("spectra", *RECORD), **options)

    assert more.quantities.keys() >= {"gradient_left", "gradient_projected"}
    assert plain.parts.keys() == more.parts.keys() == {"null.", "half 1.", "half 2."}
    for name, part in more.parts.items():
        assert part.quantities == {}
        for group in ("row_energies", "example_energies", "spectra"):
            mine, theirs = getattr(part, group), getattr(plain.parts[name], group)
            assert mine.keys() == theirs.keys() != set()
            assert all(np.array_equal(mine[m], theirs[m]) for m in mine)


def test_factors_alone_record_no_spectra():
    """What was not asked for is not there, and the halves have no gradients either."""
    statistics, _ = measured("gpt2_lm", record="gradient_factors", halves=True)

    assert statistics.spectra == {}
    assert all(part.spectra == {} for part in statistics.parts.values())
    assert set(statistics.quantities["gradient_left"]) == {m.name for m in statistics.modules}


def test_projections_of_two_runs_add_up(tmp_path):
    """Through a file as well; factors do not, and merging them is refused."""
    name = "llama_gqa_lm"
    batches = [make_batch(name, lengths, seed=i) for i, lengths in enumerate(LENGTHS)]
    model, targets = tiny(name)
    options = {"target_modules": targets, "record": "projected_gradient"}
    whole, first, second = (
        measure(model, some, **options) for some in (batches, batches[:1], batches[1:])
    )
    first.save(tmp_path / "first")

    merged = Statistics.load(tmp_path / "first").merge(second)

    for module, wanted in whole.quantities["gradient_projected"].items():
        found = merged.quantities["gradient_projected"][module]
        assert relative_error(found, wanted) <= FLOAT32
    factors = measure(model, batches, target_modules=targets, record="gradient_factors")
    with pytest.raises(InvalidStatistics, match="gradient_errors are not merged"):
        factors.merge(factors)
