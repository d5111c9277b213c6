"""The statistics equal plain autograd, on every kind of model the engine supports."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from fimlora import find_targets, measure, score
from support.models import TINY_MODELS, make_batch, minilm_path, tiny
from support.reference import (
    lora_b_squares_by_peft,
    relative_error,
    weight_gradients_by_example,
)

# Largest relative difference allowed, by the dtype of the model.
FLOAT32 = 1e-5
FLOAT64 = 1e-10
RANK, SEED, SCALE = 4, 7, 2
LENGTHS = ([9, 5, 7, 2], [6, 9, 3])


@pytest.fixture(params=sorted(TINY_MODELS))
def name(request):
    return request.param


@pytest.fixture
def padded_batches(name):
    return [make_batch(name, lengths, seed=i) for i, lengths in enumerate(LENGTHS)]


def test_sampled_equals_autograd_through_peft(name, padded_batches):
    """With the same A, squared gradients of B are those of a real PEFT model's own loss."""
    model, targets = tiny(name)
    modules = find_targets(model, targets)
    wanted = lora_b_squares_by_peft(
        model, padded_batches, modules, rank=RANK, seed=SEED, scale=SCALE
    )

    statistics = measure(
        model, padded_batches, target_modules=targets, estimator="sampled", rank=RANK, seed=SEED
    )

    errors = {
        m.name: relative_error(SCALE**2 * statistics.squared_gradients[m.name], wanted[m.name])
        for m in modules
    }
    assert max(errors.values()) <= FLOAT32, errors
    scores = score(statistics).by_module
    for module in modules:
        assert scores[module.name] == pytest.approx(
            wanted[module.name].mean().item() / len(padded_batches), rel=FLOAT32
        )


def test_exact_equals_one_backward_pass_per_example(name, padded_batches):
    """Row and example energies are those of each example's full weight gradient."""
    model, targets = tiny(name, torch.float64)
    modules = find_targets(model, targets)
    gradients = weight_gradients_by_example(model, padded_batches, modules)

    statistics = measure(model, padded_batches, target_modules=targets, estimator="exact")

    for module in modules:
        squares = gradients[module.name].square()
        rows, examples = squares.sum(dim=(0, 2)), squares.sum(dim=(1, 2))
        assert relative_error(statistics.row_energies[module.name], rows) <= FLOAT64
        assert relative_error(statistics.example_energies[module.name], examples) <= FLOAT64


def test_exact_score_is_the_energy_over_the_matrix_size(name, padded_batches):
    """The mean score is ``s^2 ||G_n||_F^2 / (3 d_in d_out)``, averaged over the examples."""
    model, targets = tiny(name)
    modules = find_targets(model, targets)
    gradients = weight_gradients_by_example(model, padded_batches, modules)

    scores = score(
        measure(model, padded_batches, target_modules=targets, scale=SCALE, estimator="exact")
    ).by_module

    for module in modules:
        energy = gradients[module.name].double().square().sum(dim=(1, 2)).mean().item()
        wanted = SCALE**2 * energy / (3 * module.d_in * module.d_out)
        assert scores[module.name] == pytest.approx(wanted, rel=FLOAT32)


def test_a_pretrained_model_agrees_as_tiny_ones_do():
    """On MiniLM in float32, both estimators equal autograd on every linear map."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(minilm_path(), num_labels=3)
    modules = find_targets(model, "all-linear")
    batches = [make_batch("bert_classifier", [12, 5, 8])]
    squares = lora_b_squares_by_peft(model, batches, modules, rank=RANK, seed=SEED, scale=SCALE)
    gradients = weight_gradients_by_example(model, batches, modules)

    statistics = measure(
        model, batches, target_modules="all-linear", estimator="both", rank=RANK, seed=SEED
    )

    assert len(modules) == 37
    for module in modules:
        found = SCALE**2 * statistics.squared_gradients[module.name]
        assert relative_error(found, squares[module.name]) <= FLOAT32
        rows = gradients[module.name].double().square().sum(dim=(0, 2))
        assert relative_error(statistics.row_energies[module.name], rows) <= FLOAT32
