"""What to change over what to keep: the contrast of two datasets."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fimlora import Statistics, allocate, find_targets, measure, score
from fimlora.confidence.signal import signal_of
from fimlora.errors import InvalidOption
from fimlora.left_out import UNREACHED
from fimlora.methods.fim import module_scores
from fimlora.methods.fim_adapter import ADAPTER_GROUP
from fimlora.methods.vila import FRACTION
from support.gradients import noise, statistics_of
from support.models import TINY_MODELS, make_batch, tiny
from support.reference import weight_gradients_by_example

SIZES = {"a": 1.0, "b": 10.0, "c": 100.0, "d": 3.0, "e": 0.25}
LENGTHS = ([30, 9, 7, 3], [6, 2, 20])
OTHERS = ([11, 4, 31], [5, 5, 17, 2])


def run_and_retain(*, times=1.0, kept=1.0, run=SIZES, retain=SIZES):
    """Statistics of two datasets, each module with gradients of its own size."""
    sums = [
        statistics_of(
            {name: factor * size * noise(n, 6, 8, seed=seed + i)
             for i, (name, size) in enumerate(sizes.items())}
        )
        for n, factor, seed, sizes in ((5, times, 0, run), (9, kept, 50, retain))
    ]  # fmt: skip
    return sums[0].with_retain(sums[1])


@pytest.mark.parametrize("aggregation", ["mean", "max", "l2"])
def test_each_score_is_that_of_one_run_over_another_and_a_part_of_its_median(aggregation):
    """By hand, from two independent sums."""
    statistics = run_and_retain()
    target, retain = (
        module_scores(s, aggregation=aggregation) for s in (statistics, statistics.retain)
    )

    found = score(statistics, "vila", aggregation=aggregation)

    added = FRACTION * np.median([*retain.values()])
    assert found.by_module == {
        name: pytest.approx(target[name] / (retain[name] + added), rel=1e-12) for name in SIZES
    }
    maps = found.provenance["contrast"]
    assert (maps["target"], maps["retain"]) == (target, retain)


@pytest.mark.parametrize("name", sorted(TINY_MODELS))
def test_scores_are_those_of_gradients_by_autograd(name):
    """One backward pass per example of each dataset, and the formula."""
    model, targets = tiny(name, torch.float64)
    data, kept = (
        [make_batch(name, lengths, seed=seed + i) for i, lengths in enumerate(batches)]
        for seed, batches in ((0, LENGTHS), (40, OTHERS))
    )
    modules = find_targets(model, targets)
    of_data, of_kept = (
        {
            m.name: G.square().sum(dim=(1, 2)).mean().item() * 4 / (3 * m.d_in * m.d_out)
            for m in modules
            for G in [weight_gradients_by_example(model, batches, modules)[m.name]]
        }
        for batches in (data, kept)
    )

    found = score(
        measure(model, data, target_modules=targets, retain=kept, estimator="exact"), "vila"
    )

    added = FRACTION * np.median([*of_kept.values()])
    assert found.by_module == {
        m.name: pytest.approx(of_data[m.name] / (of_kept[m.name] + added), rel=1e-9)
        for m in modules
    }


def test_neither_loss_has_a_unit():
    """Either's gradients a thousand times as large, or another LoRA scale, move no rank."""
    uneven = {"run": SIZES | {"a": 2.0, "d": 5.0}}
    plan = allocate(score(run_and_retain(**uneven), "vila"), 4).ranks

    assert len(set(plan.values())) > 1
    for times, kept in ((1000.0, 1.0), (1.0, 1000.0), (1e-9, 1e-9)):
        other = run_and_retain(**uneven, times=times, kept=kept)
        assert allocate(score(other, "vila"), 4).ranks == plan
    rescaled = score(run_and_retain(**uneven), "vila", scale=6)
    assert allocate(rescaled, 4, scale=6).ranks == plan


def test_what_both_need_alike_is_not_put_first():
    """A module that only the rows at hand need is, though its gradients are small."""
    statistics = run_and_retain(run=SIZES | {"d": 9.0})

    found = score(statistics, "vila").by_module

    assert max(found, key=found.__getitem__) == "d"
    assert module_scores(statistics)["c"] > 50 * module_scores(statistics)["d"]


@pytest.mark.parametrize("kept", [{}, {"c": 2.0}])
def test_rows_that_reach_little_divide_nothing_by_zero(kept):
    """All of them zero: the order of `fim`; most of them: the largest stands for the median."""
    statistics = run_and_retain(retain=dict.fromkeys(SIZES, 0.0) | kept)
    fim = {n: s for n, s in module_scores(statistics).items() if n not in kept}

    found = score(statistics, "vila").by_module

    assert all(0 < value < np.inf for value in found.values())
    rest = {name: found[name] for name in fim}
    assert sorted(rest, key=rest.__getitem__) == sorted(fim, key=fim.__getitem__)


def test_modules_that_one_dataset_does_not_reach_count_as_zero(tmp_path):
    """Such as an expert that no token takes; what only the rows to retain reach has no plan."""
    run, retain = (
        statistics_of({name: noise(5, 6, 8, seed=ord(name)) for name in names})
        for names in ("abc", "bcd")
    )
    unreached = {"a": UNREACHED}

    found = run.with_retain(replace(retain, not_targeted=unreached))

    of_retain = module_scores(retain)
    kept = {"a": 0.0, "b": of_retain["b"], "c": of_retain["c"]}
    assert module_scores(found.retain) == kept
    scores = score(found, "vila").by_module
    added = FRACTION * np.median([*kept.values()])
    assert scores == {
        name: pytest.approx(value / (kept[name] + added))
        for name, value in module_scores(run).items()
    }
    found.save(tmp_path / "file")
    assert score(Statistics.load(tmp_path / "file"), "vila").by_module == scores


def test_one_dataset_at_a_trained_adapter_and_one_not_are_not_contrasted():
    """Their scores would be of other parameters."""
    statistics = run_and_retain()
    sums = {name: np.ones((2, 4)) for name in SIZES}
    trained = replace(statistics, quantities={ADAPTER_GROUP: sums})

    with pytest.raises(InvalidOption, match="only one of the two datasets was measured at a"):
        score(trained, "vila")


def test_without_a_second_dataset_it_is_refused():
    """By name, with the next step."""
    with pytest.raises(InvalidOption, match=r"'vila' needs a second dataset.*retain="):
        score(replace(run_and_retain(), retain=None), "vila")


def test_its_signal_is_that_of_exchanged_labels_against_the_same_rows():
    """The null keeps the rows to retain; the halves are halves of both."""
    model, targets = tiny("bert_classifier", torch.float64)
    data, kept = (
        [
            make_batch("bert_classifier", lengths, seed=seed + i)
            for i, lengths in enumerate(batches)
        ]
        for seed, batches in ((0, LENGTHS), (40, OTHERS))
    )
    found = measure(model, data, target_modules=targets, retain=kept, null=True, halves=True)
    plan = allocate(score(found, "vila"), 4, r_min=1)

    signal = signal_of(found, plan)

    null = found.null.with_retain(found.retain)
    halves = [h.with_retain(r) for h, r in zip(found.halves, found.retain.halves, strict=True)]
    null_ranks, *half_ranks = (
        tuple(allocate(score(part, "vila"), 4, r_min=1).ranks.values())
        for part in (null, *halves)
    )
    assert signal.null_ranks == null_ranks
    assert signal.half_ranks == tuple(half_ranks)
    assert null_ranks != tuple(plan.ranks.values())
    assert signal.moved_by_chance is not None
