"""The sketch of the per-example Fisher: what it is, that it is unbiased, what must not change it."""

import itertools

import numpy as np
import pytest
import torch

from fimlora import Settings, find_targets, measure, measure_streamed, score
from fimlora.errors import InvalidStatistics
from fimlora.measuring.recording.energies import project_each, sketched_row_energies
from fimlora.numerics.seeded_draws import draw_example_signs, draw_signs
from support.models import TINY_MODELS, make_batch, tiny
from support.reference import relative_error, weight_gradients_by_example
from support.statistics import assert_close, assert_identical
from support.streaming import assert_same, quiet, save
from support.toys import BETWEEN, make_toy, squared_sum, toy_batch, toy_gradients

__all__ = ["quiet"]  # a fixture of every test here

SAME = 1e-10  # in float64, up to the order of additions
RANK, SEED = 4, 3
SKETCHED = {"estimator": "sketched", "rank": RANK, "seed": SEED}
# Long and uneven: padding is cut and a batch runs in several passes.
LENGTHS = {"llama_gqa_lm": [150, 9, 7, 3]}
SHORTER = [31, 9, 7, 3]  # others know 32 positions


def batches_for(name: str) -> list[dict]:
    lengths = LENGTHS.get(name, SHORTER)
    return [make_batch(name, lengths), make_batch(name, [6, 9, 3], seed=1)]


def energies_by_hand(G: torch.Tensor, numbers: list[int]) -> torch.Tensor:
    """``||G_n (A * s_n)^T||^2 / P`` by row (N O), from whole gradients (N O I)."""
    d_in = G.shape[2]
    A = draw_signs(RANK, d_in, purpose=f"sketch {SEED}").double()
    signs = draw_example_signs(numbers, d_in, seed=SEED).double()
    return torch.stack(
        [(g.double() @ (A * s).T).square().mean(dim=1) for g, s in zip(G, signs, strict=True)]
    )


@pytest.mark.parametrize("micro_batch_size", [None, 2, 1])
@pytest.mark.parametrize("name", sorted(TINY_MODELS))
def test_energies_are_those_of_whole_gradients_projected(name, micro_batch_size):
    """One backward pass per example; also Conv1D, 2-D inputs, calls without an example axis."""
    model, targets = tiny(name, torch.float64)
    batches, modules = batches_for(name), find_targets(model, targets)
    gradients = weight_gradients_by_example(model, batches, modules)

    found = measure(
        model, batches, target_modules=targets, micro_batch_size=micro_batch_size, **SKETCHED
    )

    for module in modules:
        rows = energies_by_hand(gradients[module.name], [*range(7)])
        # The models of the table round their losses to float32 here and there.
        assert relative_error(found.row_energies[module.name], rows.sum(dim=0)) <= 1e-5
        assert relative_error(found.example_energies[module.name], rows.sum(dim=1)) <= 1e-5


@pytest.mark.parametrize("between", sorted(BETWEEN))
def test_calls_are_added_before_they_are_squared(between):
    """Also where a module runs twice, or its input has no example axis."""
    batch = toy_batch(5)

    found = measure(
        make_toy(between), [batch], target_modules=["first", "second"], loss_fn=squared_sum,
        **SKETCHED,
    )  # fmt: skip

    for name in ("first", "second"):
        rows = energies_by_hand(toy_gradients(between, batch, name), [*range(5)])
        assert relative_error(found.row_energies[name], rows.sum(dim=0)) <= SAME
        assert relative_error(found.example_energies[name], rows.sum(dim=1)) <= SAME


def test_the_mean_over_all_signs_is_the_energy_itself():
    """Unbiased for any A: every one of the 2^5 sign vectors of an example is as likely."""
    generator = torch.Generator().manual_seed(0)
    x, g = torch.randn(2, 1, 6, 5, generator=generator, dtype=torch.float64)
    A = draw_signs(3, 5, purpose="any").double()
    signs = torch.tensor([*itertools.product([1.0, -1.0], repeat=5)], dtype=torch.float64)
    mixing = A * signs[:, None]

    z = project_each(mixing, x.expand(len(signs), -1, -1))
    rows = sketched_row_energies(z, g.expand(len(signs), -1, -1))

    wanted = (g[0].T @ x[0]).square().sum(dim=1)
    assert relative_error(rows.mean(dim=0), wanted) <= 1e-12
    assert rows.std(dim=0).min() > 0


def test_many_seeds_scatter_around_exact():
    """Their mean is within its own standard error of it, module by module."""
    model, targets = tiny("bert_classifier")
    batches, options = batches_for("bert_classifier"), {"target_modules": targets, "rank": 16}
    exact = score(measure(model, batches, estimator="exact", **options)).by_module

    runs = [
        score(measure(model, batches, estimator="sketched", seed=seed, **options)).by_module
        for seed in range(100)
    ]

    values = np.array([[run[name] / wanted for name, wanted in exact.items()] for run in runs])
    standard_errors = values.std(axis=0, ddof=1) / len(runs) ** 0.5
    distances = np.abs(values.mean(axis=0) - 1) / standard_errors
    assert standard_errors.max() < 0.04
    assert distances.max() < 4  # of 13 modules
    assert np.sqrt(np.square(distances).mean()) < 1.5


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3])
def test_micro_batches_change_nothing(micro_batch_size):
    """An example has its signs whatever it runs with; what is left is the order of additions."""
    model, targets = tiny("llama_gqa_lm", torch.float64)
    options = {"target_modules": targets, **SKETCHED}
    batches = batches_for("llama_gqa_lm")

    found = measure(model, batches, micro_batch_size=micro_batch_size, **options)

    assert_close(found, measure(model, batches, **options), SAME)


def test_the_split_into_batches_and_padding_change_nothing():
    """Numbers count over the whole run, and padding has no gradient."""
    model, targets = tiny("bert_classifier", torch.float64)
    batch, options = make_batch("bert_classifier", SHORTER), {"target_modules": targets}
    alone = [{k: v[i : i + 1] for k, v in batch.items()} for i in range(len(SHORTER))]

    found = measure(model, alone, **options, **SKETCHED)

    wider = make_batch("bert_classifier", SHORTER, width=32)
    assert_close(found, measure(model, [batch], **options, **SKETCHED), SAME)
    assert_close(found, measure(model, [wider], **options, **SKETCHED), SAME)


def test_each_example_has_the_signs_of_its_place_however_it_is_sorted():
    """Examples run the longest first; energies are in the order that was given."""
    model, targets = tiny("llama_gqa_lm", torch.float64)
    lengths = [3, 150, 7, 9]
    batch, modules = make_batch("llama_gqa_lm", lengths), find_targets(model, targets)
    gradients = weight_gradients_by_example(model, [batch], modules)

    found = measure(model, [batch], target_modules=targets, **SKETCHED)

    for module in modules:
        rows = energies_by_hand(gradients[module.name], [0, 1, 2, 3])
        assert relative_error(found.example_energies[module.name], rows.sum(dim=1)) <= 1e-5


def test_a_row_without_labels_leaves_the_numbers_of_the_others():
    """Numbers count the rows that were given, not those that count."""
    model, targets = tiny("llama_gqa_lm", torch.float64)
    options = {"target_modules": targets, **SKETCHED}
    batch = make_batch("llama_gqa_lm", [150, 9, 7, 3])
    fewer = batch | {"labels": batch["labels"].clone()}
    fewer["labels"][1] = -100

    whole, found = (measure(model, [b], **options) for b in (batch, fewer))

    for module in whole.modules:
        wanted = whole.example_energies[module.name][[0, 2, 3]]
        assert relative_error(found.example_energies[module.name], wanted) <= SAME


def test_shards_that_say_where_they_begin_equal_one_run():
    """And those that do not are other draws, as good but not the same."""
    model, targets = tiny("llama_gqa_lm", torch.float64)
    batches, options = batches_for("llama_gqa_lm"), {"target_modules": targets, **SKETCHED}
    whole, first = measure(model, batches, **options), measure(model, batches[:1], **options)

    second = measure(model, batches[1:], first_example=4, **options)

    assert_close(first.merge(second), whole, SAME)
    other = measure(model, batches[1:], **options)
    for module in whole.modules:
        mine, theirs = (s.row_energies[module.name] for s in (second, other))
        assert relative_error(mine, theirs) > 1e-3


def test_sketches_of_other_seeds_are_not_merged():
    """Nor with exact sums: the message names what differs."""
    model, targets = tiny("bert_classifier")
    batch, options = make_batch("bert_classifier", [5, 3]), {"target_modules": targets}
    found = measure(model, [batch], **options, **SKETCHED)

    with pytest.raises(InvalidStatistics, match="differ in seed: 3 and 4"):
        found.merge(measure(model, [batch], **options, **SKETCHED | {"seed": 4}))
    with pytest.raises(InvalidStatistics, match="differ in estimator"):
        found.merge(measure(model, [batch], estimator="exact", **options))


@pytest.mark.parametrize("micro_batch_size", [None, 2])
@pytest.mark.parametrize(
    "name", ["llama_gqa_lm", "gpt2_lm", "bert_classifier", "deberta_v2_classifier"]
)
def test_streamed_equals_resident(name, micro_batch_size, tmp_path):
    """To the last bit, with one block in memory."""
    model, targets = tiny(name)
    resident, batches = save(model, tmp_path), batches_for(name)
    options = {"target_modules": targets, "micro_batch_size": micro_batch_size, **SKETCHED}

    streamed = measure_streamed(tmp_path, batches, Settings(first_example=5, **options))

    assert_same(streamed, measure(resident, batches, first_example=5, **options))


class StopError(Exception):
    """What a caller ends a run with."""


def test_a_run_that_goes_on_gives_the_same_statistics(tmp_path):
    """Batches that the file holds count, so those behind them keep their numbers."""
    model, targets = tiny("llama_gqa_lm")
    batches, options = batches_for("llama_gqa_lm"), {"target_modules": targets, **SKETCHED}

    def stop(done: int, expected: int) -> None:
        raise StopError

    with pytest.raises(StopError):
        measure(model, batches, progress_file=tmp_path / "sums", on_batch=stop, **options)
    resumed = measure(model, batches, progress_file=tmp_path / "sums", **options)

    assert_identical(resumed, measure(model, batches, **options))


def test_half_precision_is_multiplied_in_float32():
    """What hooks see in bfloat16, projected in float64."""
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(2, 40, n, generator=generator).bfloat16() for n in (16, 24))
    signs = draw_signs(RANK, 16, purpose="any").expand(2, -1, -1)

    rows = sketched_row_energies(project_each(signs, x), g)

    G = torch.einsum("nto,nti->noi", g.double(), x.double())
    wanted = (G @ signs.double().mT).square().mean(dim=2)
    assert rows.dtype == torch.float32
    assert relative_error(rows, wanted) <= 1e-5


def test_its_scores_have_its_name(tmp_path):
    """Statistics say that they are sketched, by which draw; a file keeps it."""
    model, targets = tiny("bert_classifier")
    batch = make_batch("bert_classifier", [5, 3])

    found = measure(model, [batch], target_modules=targets, **SKETCHED)

    assert found.provenance()["estimator"] == "sketched"
    assert (found.rank, found.seed) == (RANK, SEED)
    assert score(found).by_module == score(found, estimator="sketched").by_module
    found.save(tmp_path / "s")
    assert_identical(type(found).load(tmp_path / "s"), found, in_order=False)
