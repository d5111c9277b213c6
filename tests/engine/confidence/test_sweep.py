"""A sweep is what runs over fewer batches, each planned by itself, would have given."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from fimlora import Budget, allocate, measure, score
from fimlora.allocation.distance import moved_share
from fimlora.confidence.signal import signal_of
from fimlora.confidence.sweep import MOST_ROWS, sweep
from fimlora.errors import InfeasibleBudget, InvalidOption
from fimlora.methods.fim_adapter import ADAPTER_GROUP
from support.models import make_batch, tiny

NAME = "bert_classifier"
LENGTHS = ([30, 9, 7, 3], [6, 2, 20], [11], [4, 31, 5], [8, 8], [3])
OPTIONS = {"null": True, "halves": True, "seed": 5}


@cache
def run(n=None, **options):
    model, targets = tiny(NAME, torch.float64)
    batches = [make_batch(NAME, lengths, seed=i) for i, lengths in enumerate(LENGTHS)]
    return measure(model, batches[:n], target_modules=targets, **OPTIONS | options)


@pytest.fixture(scope="module")
def statistics():
    return run()


@pytest.mark.parametrize("estimator", ["exact", "sketched"])
@pytest.mark.parametrize("budget", [4, Budget("parameters", 2500)], ids=["ranks", "parameters"])
def test_fewer_batches_are_those_of_a_run_of_their_own(budget, estimator):
    """The plan, its distances and its signal, for every number of batches and floor."""
    whole = run(estimator=estimator)

    found = sweep(whole, budget, aggregations=["mean"], n_batches=[1, 2, 3, 5, 6], r_min=[1, 2])

    assert len(found.rows) == 10
    for row in found.rows:
        alone = run(row.n_batches, estimator=estimator)
        plan, full, default = (
            allocate(score(some), budget, **floor)
            for some, floor in (
                (alone, {"r_min": row.r_min}), (whole, {"r_min": row.r_min}), (whole, {}),
            )
        )  # fmt: skip
        signal = signal_of(alone, plan)
        costs = None if isinstance(budget, int) else {m.name: m.cost for m in plan.modules}
        assert (row.signal, row.moved_by_labels) == (
            signal.verdict, pytest.approx(signal.moved_by_labels, abs=1e-6)
        )  # fmt: skip
        assert row.overlap == pytest.approx(
            1 - moved_share(plan.ranks, full.ranks, costs=costs), abs=1e-6
        )
        assert row.overlap_with_default == pytest.approx(
            1 - moved_share(plan.ranks, default.ranks, costs=costs), abs=1e-6
        )
        ranks = [*plan.ranks.values()]
        assert row.at_floor == pytest.approx(ranks.count(row.r_min) / len(ranks), abs=1e-6)
        assert row.at_ceiling == pytest.approx(ranks.count(row.r_max) / len(ranks), abs=1e-6)
        if costs is None:
            assert row.moved == sum(abs(plan.ranks[n] - full.ranks[n]) for n in plan.ranks) / 2
    assert any(row.moved for row in found.rows)
    assert [row.n_batches for row in found.rows[:5]] == [1, 2, 3, 5, 6]


@pytest.mark.parametrize("kind", ["max", "l2"])
def test_other_aggregations_are_known_for_all_batches_alone(statistics, kind):
    """Of all they are those of `score`; of fewer the row says why there is none."""
    found = sweep(statistics, 4, aggregations=[kind], r_min=[1])

    plan = allocate(score(statistics, aggregation=kind), 4, r_min=1)
    default = allocate(score(statistics), 4)
    *fewer, whole = found.rows
    assert whole.overlap_with_default == pytest.approx(
        1 - moved_share(plan.ranks, default.ranks), abs=1e-6
    )
    assert whole.signal == signal_of(statistics, plan, aggregation=kind).verdict
    assert (whole.moved, whole.overlap) == (0, 1)
    assert [row.n_batches for row in fewer] == [1, 2, 4]
    assert all("summed over all batches" in row.unknown for row in fewer)
    assert all(row.overlap is None for row in fewer)


def test_by_default_it_goes_through_what_the_paper_varies(statistics):
    """Aggregations, doubled numbers of batches and all, floors up to half the mean rank."""
    found = sweep(statistics, 8)

    asked = {(row.aggregation, row.n_batches, row.r_min) for row in found.rows}
    assert asked == {
        (kind, n, low)
        for kind in ("mean", "max", "l2")
        for n in (1, 2, 4, 6)
        for low in (1, 2, 4)
    }
    assert found.default_r_min == 4
    first = next(
        r for r in found.rows if (r.aggregation, r.n_batches, r.r_min) == ("mean", 6, 4)
    )
    assert (first.moved, first.overlap, first.overlap_with_default) == (0, 1, 1)
    assert found.to_json()["rows"][0]["aggregation"] == "mean"


def test_a_preset_of_groups_is_those_groups(statistics):
    """As a text, and as lists that can be gone through once."""
    by_kind = {}
    for module in statistics.modules:
        by_kind.setdefault(module.kind, []).append(module.name)

    preset = sweep(statistics, 4, groups="type")

    assert preset.rows == sweep(statistics, 4, groups=iter(by_kind.values())).rows
    assert preset.rows != sweep(statistics, 4).rows


def test_a_floor_that_is_not_feasible_has_its_reason(statistics):
    """The others have their plans."""
    low, high = sweep(statistics, 4, aggregations=["mean"], n_batches=[6], r_min=[4, 5]).rows

    assert low.overlap == 1
    assert "r_min=5" in high.unknown
    with pytest.raises(InfeasibleBudget):
        sweep(statistics, 4, r_max=2)


def test_the_signal_is_stated_where_it_was_measured_and_asked_for(statistics):
    """A plan is made all the same."""
    silent = sweep(statistics, 4, aggregations=["mean"], signal=False).rows
    without = sweep(run(null=False), 4, aggregations=["mean"]).rows

    assert all(row.signal is None and row.overlap for row in (*silent, *without))


def test_what_is_not_known_of_fewer_batches_is_said(statistics):
    """Of one random A, and of statistics that do not say where batches end."""
    sampled = sweep(run(estimator="sampled"), 4, aggregations=["mean"], n_batches=[2, 6])
    unsized = sweep(
        replace(statistics, batch_sizes=()), 4, aggregations=["mean"], n_batches=[2, 6]
    )

    for found, said in (
        (sampled, "no value per example"),
        (unsized, "where their batches end"),
    ):
        assert {row.unknown is None for row in found.rows if row.n_batches == 6} == {True}
        assert all(said in row.unknown for row in found.rows if row.n_batches == 2)


def test_of_a_trained_adapter_the_mean_of_all_batches_is_known(statistics):
    """Nothing is taken from the values per example, which are of the base model's weights."""
    sums = {m.name: np.full((2, 4), 1.0 + i) for i, m in enumerate(statistics.modules)}
    trained = replace(statistics, quantities={ADAPTER_GROUP: sums}, null=None, halves=None)

    found = sweep(trained, 4, r_min=[1], n_batches=[2, 6])

    known = [(row.aggregation, row.n_batches) for row in found.rows if row.unknown is None]
    assert known == [("mean", 6)]
    assert all("trained adapter" in row.unknown for row in found.rows if row.unknown)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n_batches": [7]}, "n_batches=7: 6 were measured"),
        ({"n_batches": [0]}, "n_batches=0: it must be at least 1"),
        ({"n_batches": []}, "one at least"),
        ({"aggregations": []}, f"1 to {MOST_ROWS} rows"),
        ({"r_min": range(1, 100)}, f"1 to {MOST_ROWS} rows"),
        ({"aggregations": ["median"]}, "aggregation='median'"),
    ],
    ids=str,
)
def test_what_is_outside_is_refused(statistics, options, said):
    """With what is allowed."""
    with pytest.raises(InvalidOption, match=said):
        sweep(statistics, 4, **options)
