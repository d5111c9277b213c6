"""The squared gradient of a batch without a random A, against autograd and against many A."""

import pytest
import torch

from fimlora import find_targets, measure, score
from fimlora.errors import InvalidStatistics, NumericalFailure
from support.models import TINY_MODELS, make_batch, tiny
from support.reference import relative_error, weight_gradients_by_batch
from support.toys import BETWEEN, make_toy, squared_sum, toy_batch, toy_gradients

FLOAT32 = 1e-5
SAME = 1e-10  # in float64, up to the order of additions
LENGTHS = ([9, 5, 7, 2], [6, 9, 3])


def recorded(model, batches, **options):
    return measure(model, batches, record="batch_energies", **options)


@pytest.mark.parametrize("micro_batch_size", [None, 3, 1])
@pytest.mark.parametrize("name", sorted(TINY_MODELS))
def test_energies_are_those_of_the_batch_loss(name, micro_batch_size):
    """One backward pass per batch through the model's own loss, and the squares of its rows."""
    model, targets = tiny(name, torch.float64)
    batches = [make_batch(name, lengths, seed=i) for i, lengths in enumerate(LENGTHS)]
    modules = find_targets(model, targets)
    gradients = weight_gradients_by_batch(model, batches, modules)

    found = recorded(model, batches, target_modules=targets, micro_batch_size=micro_batch_size)

    for module in modules:
        wanted = gradients[module.name].double().square().sum(dim=(0, 2))
        assert relative_error(found.batch_energies[module.name], wanted) <= FLOAT32, module.name


@pytest.mark.parametrize("micro_batch_size", [None, 2])
@pytest.mark.parametrize("between", sorted(BETWEEN))
def test_calls_are_added_before_they_are_squared(between, micro_batch_size):
    """Also where a module runs twice, or its input has no example axis."""
    batch = toy_batch(5)
    options = {"target_modules": ["first", "second"], "loss_fn": squared_sum}

    found = recorded(make_toy(between), [batch], micro_batch_size=micro_batch_size, **options)

    for name in ("first", "second"):
        wanted = toy_gradients(between, batch, name).mean(dim=0).square().sum(dim=1)
        # An example counts 1 / 5 in the batch, which is rounded to float32.
        assert relative_error(found.batch_energies[name], wanted) <= 1e-6, name


def test_the_average_over_many_draws_of_a_is_the_score_of_the_batch():
    """What a seed of `sampled` scatters around."""
    model, targets = tiny("bert_classifier")
    batches = [make_batch("bert_classifier", lengths) for lengths in LENGTHS]

    statistics = recorded(
        model, batches, target_modules=targets, estimator="sampled", rank=4000
    )

    batch, sampled = (
        score(statistics, estimator=name).by_module for name in ("batch", "sampled")
    )
    # Relative noise sqrt(2 / rank) = 2 % at worst, of one draw.
    assert relative_error(list(sampled.values()), list(batch.values())) <= 0.05


def test_a_batch_of_one_example_has_the_energy_of_that_example():
    """There the two ways to square are the same."""
    model, targets = tiny("llama_gqa_lm", torch.float64)
    rows = make_batch("llama_gqa_lm", [7, 7, 7])
    batches = [{key: value[i : i + 1] for key, value in rows.items()} for i in range(3)]

    found = recorded(model, batches, target_modules=targets)

    for name, rows_of_examples in found.row_energies.items():
        assert relative_error(found.batch_energies[name], rows_of_examples) <= SAME
    assert score(found, estimator="batch").by_module == pytest.approx(
        score(found, estimator="exact").by_module
    )


def test_batches_measured_apart_add_up():
    """Energies are sums over batches; a run without them has nothing to add."""
    model, targets = tiny("gpt2_lm", torch.float64)
    batches = [make_batch("gpt2_lm", lengths) for lengths in LENGTHS]
    options = {"target_modules": targets}

    merged = recorded(model, batches[:1], **options).merge(
        recorded(model, batches[1:], **options)
    )

    whole = recorded(model, batches, **options)
    for name, wanted in whole.batch_energies.items():
        assert relative_error(merged.batch_energies[name], wanted) <= SAME
    with pytest.raises(InvalidStatistics, match="batch_energies"):
        merged.merge(measure(model, batches, **options))


def test_an_energy_that_overflows_is_refused_by_the_module():
    """Its square does not fit float32, though the gradient of B through a small A does."""
    model, batch = make_toy("plain").float(), {k: v.float() for k, v in toy_batch(2).items()}
    batch["scale"] = torch.full((2,), 1e19)
    options = {"target_modules": ["first"], "loss_fn": squared_sum, "estimator": "sampled"}

    with pytest.raises(NumericalFailure, match=r"'first'.*inf.*batch 1"):
        recorded(model, [batch], rank=1, **options)
