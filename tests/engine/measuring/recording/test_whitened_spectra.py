"""Gradients whitened by their inputs, whole and from sketches, against dense decompositions."""

import math

import numpy as np
import pytest
import torch

from fimlora import find_targets, measure, score
from fimlora.measuring.recording.mean_gradient import Signs, SketchedSum
from fimlora.measuring.recording.singular_values import N_LEADING
from fimlora.measuring.recording.whitening import (
    whitened_exactly,
    whitened_from_sketch,
    whitening_factors,
)
from fimlora.memory.need import SKETCH_WIDTH
from fimlora.methods.effective_rank import rank_bounds
from fimlora.plan import TargetModule
from fimlora.statistics.statistics import RESOLVED_ERROR
from support.models import TINY_MODELS, make_batch, tiny
from support.reference import matrix_with, weight_gradients_by_example

LENGTHS = ([31, 9, 7, 3], [5, 18], [4, 2, 30])
RECORD = "whitened_spectra"
SHAPES = [(700, 450), (450, 700), (500, 500)]  # tall, wide, square


def batches_for(name):
    return [make_batch(name, lengths, seed=i) for i, lengths in enumerate(LENGTHS)]


def second_moments(model, batches, modules):
    """Mean square of each input feature over all tokens that are not padding, one by one."""
    rows = {module.name: [] for module in modules}

    def hook(module, args, name):
        rows[name] += [*args[0].detach().reshape(-1, args[0].shape[-1])]

    handles = [
        model.get_submodule(m.name).register_forward_hook(
            lambda module, args, output, name=m.name: hook(module, args, name)
        )
        for m in modules
    ]
    for batch in batches:
        for i, n in enumerate(batch["attention_mask"].sum(dim=1).tolist()):
            model(
                **{key: value[i : i + 1, :n] for key, value in batch.items() if key != "labels"}
            )
    for handle in handles:
        handle.remove()
    return {name: torch.stack(found).square().mean(dim=0) for name, found in rows.items()}


def dense_rank(M):
    """exp of the entropy of a full decomposition's energies."""
    p = torch.linalg.svdvals(M).square()
    p = p / p.sum()
    return math.exp(-sum(x * math.log(x) for x in p.tolist() if x > 0))


@pytest.mark.parametrize("name", sorted(set(TINY_MODELS) - {"deberta_v2_classifier"}))
@pytest.mark.parametrize("size", [None, 3])
def test_values_and_rank_are_those_of_a_dense_decomposition(name, size):
    """Gradients by autograd, moments token by token, the matrix square root written out."""
    model, targets = tiny(name, torch.float64)
    batches = batches_for(name)
    modules = find_targets(model, targets)
    gradients = weight_gradients_by_example(model, batches, modules)
    moments = second_moments(model, batches, modules)

    found = measure(
        model, batches, target_modules=targets, record=RECORD, micro_batch_size=size
    )

    ranks = score(found, "effective-rank")
    for module in modules:
        C = torch.diag(moments[module.name])
        damped = C + 0.01 * C.trace() / module.d_in * torch.eye(
            module.d_in, dtype=torch.float64
        )
        root = torch.linalg.inv(torch.linalg.cholesky(damped))  # diagonal, so symmetric
        M = gradients[module.name].mean(dim=0) @ root
        values = torch.linalg.svdvals(M).numpy()
        assert np.allclose(
            found.quantities[RECORD][module.name], values, rtol=0, atol=1e-7 * values[0]
        )
        assert ranks.by_module[module.name] == pytest.approx(dense_rank(M), rel=1e-7)
    assert ranks.provenance["effective_rank_bounds"] == {}
    assert ranks.provenance["unresolved_ranks"] == []


def test_halves_are_whitened_by_their_own_inputs():
    """As if each had been run alone."""
    model, targets = tiny("llama_gqa_lm", torch.float64)
    batches = batches_for("llama_gqa_lm")
    options = {"target_modules": targets, "record": RECORD}

    found = measure(model, batches, halves=True, **options)

    for half, own in zip(found.halves, (batches[::2], batches[1::2]), strict=True):
        alone = score(measure(model, own, **options), "effective-rank").by_module
        assert score(half, "effective-rank").by_module == pytest.approx(alone, rel=1e-6)


def made(shape, power, seed):
    """A gradient whose values fall by a power between random directions, and uneven inputs."""
    torch.manual_seed(seed)
    n = min(shape)
    G = matrix_with(torch.arange(1, n + 1, dtype=torch.float64) ** -power, *shape)
    return G, torch.randn(shape[1], dtype=torch.float64).exp()


def sketched(G):
    """A sketch of it, fed as if one token had made each column."""
    sums = SketchedSum(TargetModule("m", G.shape[1], G.shape[0]), Signs(SKETCH_WIDTH))
    sums.add(torch.eye(G.shape[1], dtype=G.dtype), G.mT)
    for pending in sums.sums():
        pending.commit()
    return sums.sketch(1)


@pytest.mark.parametrize("shape", SHAPES, ids=["tall", "wide", "square"])
@pytest.mark.parametrize("power", [0.5, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_sketch_states_its_error_and_bounds_that_hold(shape, power, seed):
    """Leading energy within the stated error where that counts as resolved; bounds always."""
    G, squares = made(shape, power, seed)
    d = whitening_factors(squares)
    exact = whitened_exactly(G, d)

    found = whitened_from_sketch(sketched(G), d)

    leading, wanted = (v.values[:N_LEADING].square().sum().item() for v in (found, exact))
    if found.error <= RESOLVED_ERROR:
        assert leading == pytest.approx(wanted, rel=found.error)
    least, estimate, most = found.energies
    assert least <= exact.energies[1] <= most
    assert least <= estimate <= most
    rank = dense_rank(G * d)
    bounds = rank_bounds(found.values.numpy(), np.array(found.energies), n_values=min(shape))
    assert bounds.least * (1 - RESOLVED_ERROR) <= rank <= bounds.most * (1 + RESOLVED_ERROR)


def test_steep_spectra_are_resolved_and_flat_ones_named():
    """Of sketches of both kinds, wide and tall."""
    for shape in SHAPES:
        (steep, squares), (flat, _) = made(shape, 2.0, 0), made(shape, 0.25, 0)
        d = whitening_factors(squares)
        assert whitened_from_sketch(sketched(steep), d).error <= RESOLVED_ERROR
        assert whitened_from_sketch(sketched(flat), d).error > RESOLVED_ERROR


def test_no_input_and_no_gradient_give_no_numbers_that_are_none():
    """Factors of one, a rank of zero."""
    d = whitening_factors(torch.zeros(5))
    found = whitened_exactly(torch.zeros(4, 5), d)

    assert d.tolist() == [1.0] * 5
    assert rank_bounds(found.values.numpy(), np.array(found.energies), n_values=4) == (0, 0)
