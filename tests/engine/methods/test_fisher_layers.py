"""Layers by the trace of the Fisher information, against one backward pass per example."""

import numpy as np
import pytest
import torch

from fimlora import Settings, allocate, find_targets, measure, measure_streamed, score
from fimlora.allocation.layers import n_layers_of
from fimlora.allocation.planning import many_like, ranks_like
from fimlora.confidence.bootstrap import confidence_of
from fimlora.confidence.evidence import with_confidence
from fimlora.confidence.signal import no_room, signal_of, with_signal
from fimlora.errors import InvalidOption, OutOfMemory
from fimlora.plan import Budget
from fimlora.scores import Scores
from support.allocation import modules_by_layer
from support.gradients import noise, statistics_of
from support.models import TINY_MODELS, make_batch, tiny
from support.reference import weight_gradients_by_example
from support.streaming import save

FLOAT64 = 1e-10
LENGTHS = ([31, 9, 7, 3], [12, 5])
BLOCKS = {f"layers.{i}.{kind}" for i in range(6) for kind in ("q", "v")}


def layered(n_examples=40, *, spread=0.3, **options):
    """Gradients of six layers of two modules, the deeper the larger."""
    G = {
        name: (1 + spread * int(name.split(".")[1])) * noise(n_examples, 16, 16, seed=seed)
        for seed, name in enumerate(sorted(BLOCKS))
    }
    return statistics_of(G, **options)


@pytest.mark.parametrize("name", sorted(TINY_MODELS))
def test_a_layer_scores_the_trace_of_its_fisher_information(name):
    """The mean over examples of the squared gradient, summed over all entries of its weights."""
    model, targets = tiny(name, torch.float64)
    batches = [make_batch(name, lengths, seed=i) for i, lengths in enumerate(LENGTHS)]
    modules = find_targets(model, targets)
    gradients = weight_gradients_by_example(model, batches, modules)
    layers = modules_by_layer(modules)
    wanted = {
        block: sum(gradients[m.name].square().mean(dim=0).sum().item() for m in inside)
        for block, inside in layers.items()
    }

    statistics = measure(
        model, batches, target_modules=targets, estimator="exact", micro_batch_size=3
    )
    scores = score(statistics, "fisher-layers")

    found = {
        block: sum(scores.by_module[m.name] for m in inside) for block, inside in layers.items()
    }
    assert found == pytest.approx(wanted, rel=FLOAT64)
    plan = allocate(scores, 2)
    [best] = sorted(wanted, key=wanted.__getitem__, reverse=True)[:1]
    assert {m.block for m in plan.modules if plan.ranks[m.name]} == {best}
    assert plan.rule == "layers"
    assert plan.method == "fisher-layers"
    assert plan.provenance["layer_score"] == "trace"


@pytest.mark.parametrize("name", sorted(TINY_MODELS))
def test_the_frobenius_form_is_that_of_every_entry(name):
    """The norm of the mean over examples of the squared gradient, added up over a layer."""
    model, targets = tiny(name, torch.float64)
    batches = [make_batch(name, lengths, seed=i) for i, lengths in enumerate(LENGTHS)]
    modules = find_targets(model, targets)
    gradients = weight_gradients_by_example(model, batches, modules)
    options = {"target_modules": targets, "record": "parameter_fisher", "halves": True}

    whole, parts = (
        measure(model, batches, micro_batch_size=size, **options) for size in (None, 3)
    )

    for statistics in (whole, parts):
        scores = score(statistics, "fisher-layers-frobenius")
        for module in modules:
            F = gradients[module.name].square().mean(dim=0)
            assert scores.by_module[module.name] == pytest.approx(F.norm().item(), rel=FLOAT64)
        assert allocate(scores, 2).provenance["layer_score"] == "sum of Frobenius norms"
    first = gradients[modules[0].name][: len(LENGTHS[0])].square().mean(dim=0)
    half = score(whole.halves[0], "fisher-layers-frobenius").by_module[modules[0].name]
    assert half == pytest.approx(first.norm().item(), rel=1e-8)


def test_streamed_the_frobenius_form_is_the_same_to_the_last_bit(tmp_path):
    """One block's entries at a time; resident it is refused where they may not be held."""
    model, targets = tiny("llama_gqa_lm")
    resident = save(model, tmp_path)
    batches = [make_batch("llama_gqa_lm", lengths, seed=i) for i, lengths in enumerate(LENGTHS)]
    options = {"target_modules": targets, "record": "parameter_fisher", "null": True}

    streamed = measure_streamed(tmp_path, batches, Settings(spectra_bytes=1, **options))

    assert streamed.to_bytes() == measure(resident, batches, **options).to_bytes()
    with pytest.raises(OutOfMemory, match="record='parameter_fisher' keeps an array"):
        measure(resident, batches, spectra_bytes=1, **options)


def test_a_sketch_of_the_energies_has_the_same_expectation():
    """Within a few percent, so that layers which differ more are told apart."""
    model, targets = tiny("llama_gqa_lm")
    batches = [make_batch("llama_gqa_lm", [31, 9, 7, 3, 15, 20], seed=i) for i in range(4)]

    exact, sketched = (
        score(
            measure(model, batches, target_modules=targets, estimator=estimator, rank=16),
            "fisher-layers",
        ).by_module
        for estimator in ("exact", "sketched")
    )

    assert sum(sketched.values()) == pytest.approx(sum(exact.values()), rel=0.1)


def test_one_example_is_enough_and_the_published_estimator_is_not():
    """There is no pair to compare; but without energies per example there is no trace."""
    one = score(layered(1), "fisher-layers")
    model, targets = tiny("llama_gqa_lm")
    batch = make_batch("llama_gqa_lm", [9, 5])
    sampled = measure(model, [batch], target_modules=targets, estimator="sampled")

    assert allocate(one, 4).rule == "layers"
    with pytest.raises(InvalidOption, match="needs the energy of each example"):
        score(sampled, "fisher-layers")


def test_neither_the_scale_of_lora_nor_an_aggregation_moves_a_layer():
    """The trace is of the weights' gradients."""
    statistics = layered()
    once = score(statistics, "fisher-layers").by_module

    assert score(statistics, "fisher-layers", scale=7, aggregation="max").by_module == once


# --- how sure the choice is --------------------------------------------------------------


@pytest.mark.parametrize("budget", [4, Budget("parameters", 1500)], ids=str)
def test_many_plans_at_once_are_those_of_one_after_the_other(budget):
    """Whatever scores choose which layers."""
    plan = allocate(score(layered(), "fisher-layers"), budget, n_layers=2)
    names = [module.name for module in plan.modules]
    rows = np.random.default_rng(0).uniform(size=(60, len(names)))

    ranks = many_like(plan, rows)

    for row, found in zip(rows, ranks, strict=True):
        scores = Scores(plan.modules, dict(zip(names, row.tolist(), strict=True)))
        assert dict(zip(names, found.tolist(), strict=True)) == ranks_like(plan, scores)
    assert len({tuple(row) for row in ranks.tolist()}) > 5


def test_resampled_rows_choose_the_layers_that_differ_clearly():
    """Layers far apart are chosen always; those that differ by chance now and then."""
    sure = allocate(score(clear := layered(spread=2), "fisher-layers"), 4)
    unsure = allocate(score(vague := layered(n_examples=6, spread=0), "fisher-layers"), 4)

    certain, doubtful = (
        confidence_of(statistics, plan, n_resamples=300)
        for statistics, plan in ((clear, sure), (vague, unsure))
    )

    assert certain.n_unresolved == 0
    assert certain.expected_overlap == 1
    assert doubtful.n_unresolved > 6
    assert doubtful.expected_overlap < 0.9
    # By hand: the plan of each draw, with the same draws.
    rng, energies = (
        np.random.default_rng(0),
        [vague.example_energies[m.name] for m in unsure.modules],
    )
    drawn = rng.integers(0, 6, size=(300, 6))
    chosen = np.zeros(6)
    for rows in drawn:
        sums = np.array([e[rows].sum() for e in energies]).reshape(6, 2).sum(axis=1)
        chosen[np.argsort(-sums, kind="stable")[:3]] += 1
    planned = [unsure.ranks[f"layers.{i}.q"] > 0 for i in range(6)]
    agreeing = np.where(planned, chosen, 300 - chosen) / 300
    found = [
        doubtful.shares[[m.name for m in unsure.modules].index(f"layers.{i}.q")]
        for i in range(6)
    ]
    assert found == pytest.approx(agreeing)


def test_a_plan_says_how_sure_it_is_and_how_far_labels_move_it():
    """Both go by the layers that other scores would choose."""
    names = sorted(BLOCKS)
    null = statistics_of(
        {name: noise(40, 16, 16, seed=90 + i) for i, name in enumerate(names)},
        null_targets=(40, 30),
    )
    halves = tuple(layered(20, spread=spread) for spread in (0.06, 0.04))
    statistics = layered(spread=0.5, null=null, halves=halves)
    plan = allocate(score(statistics, "fisher-layers"), 2, n_layers=1)

    signal = signal_of(statistics, plan)
    sure = with_confidence(statistics, plan)

    assert n_layers_of(plan.modules, dict(zip(plan.ranks, signal.null_ranks, strict=True))) == 1
    assert signal.moved_by_labels in {0.0, 1.0}  # one layer is chosen, or another
    assert sure.confidence is not None
    assert "confidence_unknown" not in {w.code for w in sure.warnings}


def test_layers_of_unlike_size_have_no_signal_and_no_confidence_rather_than_an_error():
    """Where other scores choose layers without room, nobody can say how far the plan would move."""
    G = {"layers.0.q": noise(8, 4, 4, seed=0), "layers.1.q": 9 * noise(8, 64, 64, seed=1)}
    statistics = statistics_of(G)
    plan = allocate(score(statistics, "fisher-layers"), 16)

    sure = with_signal(with_confidence(statistics, plan), None)

    assert "of unlike size" in (no_room(plan) or "")
    assert sure.confidence is None
    [warning] = [w for w in sure.warnings if w.code == "confidence_unknown"]
    assert "of unlike size" in warning.message
    assert with_signal(plan, "whatever").signal["verdict"] == "unknown"
