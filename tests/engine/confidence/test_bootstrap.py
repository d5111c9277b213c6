"""Confidence is what a loop over resamples, each planned like the plan, comes to."""

import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from fimlora import Statistics, allocate, score
from fimlora.allocation.distance import moved_share
from fimlora.confidence.bootstrap import (
    confidence_of,
    expected_overlap,
    obstacle,
    resampled_means,
    resamples_for,
)
from fimlora.constraints import Constraints
from fimlora.errors import InvalidOption
from fimlora.plan import Budget
from fimlora.scores import Scores
from fimlora.statistics.options import Estimator
from support.allocation import COST, llama_like

MODULES = llama_like()
SHARES = {"q_proj": {"share": 0.3, "r_min": 2}, "down_proj": {"share": 0.55}}


def statistics_of(energies, **changes):
    """Statistics of these examples: one row each, a column per module."""
    energies = np.asarray(energies, dtype=np.float64)
    rows = {
        m.name: np.full(m.d_out, energies[:, i].sum() / m.d_out) for i, m in enumerate(MODULES)
    }
    made = Statistics(
        modules=MODULES,
        estimator=Estimator.EXACT,
        n_examples=len(energies),
        n_batches=1,
        base_parameters=10**6,
        loss="causal_lm",
        dtype="float32",
        scale=2,
        train_mode=False,
        rank=None,
        seed=None,
        row_energies=rows,
        example_energies={m.name: energies[:, i] for i, m in enumerate(MODULES)},
        squared_gradients={},
    )
    return replace(made, **changes)


def drawn_energies(n, *, spread=0.5, seed=0):
    """Examples that differ, of modules that differ: heavy tails, as gradients have."""
    rng = np.random.default_rng(seed)
    sizes = rng.lognormal(0, 1, len(MODULES))
    return sizes * rng.lognormal(0, spread, (n, len(MODULES))) * rng.lognormal(0, 1, (n, 1))


@pytest.mark.parametrize(
    ("budget", "options"),
    [
        (8, {}),
        (4, {"multiple_of": 2}),
        (8, {"groups": [(MODULES[0].name, MODULES[3].name)]}),
        (8, {"groups": "layer", "rank_menu": [1, 5, 8, 11, 16], "r_min": 1}),
        (Budget("parameters", 8 * COST + 77), {"per_type": SHARES}),
        (Budget("parameters", 8 * COST + 77), {}),
    ],
    ids=["ranks", "multiples", "groups", "menu", "shares", "parameters"],
)
def test_it_is_the_loop_over_resamples(budget, options):
    """Each is allocated by itself from its own means; then one counts, and compares."""
    energies, n = drawn_energies(23), 60
    statistics = statistics_of(energies)
    plan = allocate(score(statistics), budget, **options)

    found = confidence_of(statistics, plan, n_resamples=n, seed=5)

    drawn = np.random.default_rng(5).integers(0, 23, size=(n, 23))
    names = [m.name for m in MODULES]
    of_one = {m.name: 4 / (3 * m.cost_of_both) for m in map(_Sides, MODULES)}
    scores, ranks = [], []
    for examples in drawn.tolist():
        means = [math.fsum(energies[i, k] for i in examples) / 23 for k in range(len(names))]
        scores.append([mean * of_one[name] for mean, name in zip(means, names, strict=True)])
        by_module = dict(zip(names, scores[-1], strict=True))
        ranks.append(dict(allocate(Scores(MODULES, by_module), budget, **options).ranks))
    costs = {m.name: m.cost for m in MODULES} if isinstance(budget, Budget) else None
    apart = [
        moved_share(a, b, costs=costs) for a, b in zip(ranks, [ranks[-1], *ranks], strict=False)
    ]
    assert found.expected_overlap == pytest.approx(1 - sum(apart) / n, rel=1e-12)
    assert found.standard_errors == pytest.approx(np.std(scores, axis=0), rel=1e-6)
    assert found.rank_noise == largest_but(0.05, [moved_share(a, b) for a, b in pairs(ranks)])
    of_shares = [[s / math.fsum(row) for s in row] for row in scores]
    apart = [
        sum(abs(x - y) for x, y in zip(a, b, strict=True)) / 2 for a, b in pairs(of_shares)
    ]
    assert found.score_noise == pytest.approx(largest_but(0.05, apart), rel=1e-6)
    for k, name in enumerate(names):
        of_module = sorted(r[name] for r in ranks)
        assert (found.lowest_ranks[k], found.highest_ranks[k]) == (of_module[1], of_module[58])
        assert found.shares[k] == of_module.count(plan.ranks[name]) / n
    assert found.n_unresolved == sum(
        low < high for low, high in zip(found.lowest_ranks, found.highest_ranks, strict=True)
    )
    assert found.n_unresolved > 0
    assert (found.n_examples, found.n_resamples) == (23, n)


def pairs(draws):
    """Each draw with the one before it."""
    return zip(draws, [draws[-1], *draws], strict=False)


def largest_but(share, values):
    """The largest of the values, once this share of them is left out at the top."""
    return sorted(values)[len(values) - 1 - math.floor(share * len(values))]


class _Sides:
    """A module whose score is its mean energy over this and three."""

    def __init__(self, module):
        self.name, self.cost_of_both = module.name, module.d_in * module.d_out


def test_the_standard_error_is_the_textbooks():
    """Of a mean: the deviation of the examples over the root of their number."""
    energies = drawn_energies(200)
    statistics = statistics_of(energies)
    plan = allocate(score(statistics), 8)

    found = confidence_of(statistics, plan, n_resamples=4000)

    textbook = energies.std(axis=0) / energies.mean(axis=0) / math.sqrt(200)
    relative = np.array(found.standard_errors) / np.array(list(plan.scores.values()))
    assert relative == pytest.approx(textbook, rel=0.06)


def test_examples_that_agree_leave_no_doubt():
    """No error, one rank in each interval, and the same plan from any draw."""
    statistics = statistics_of(np.tile(drawn_energies(1), (16, 1)))
    plan = allocate(score(statistics), 8)

    found = confidence_of(statistics, plan, n_resamples=50)

    ranks = tuple(plan.ranks[m.name] for m in MODULES)
    assert (found.lowest_ranks, found.highest_ranks) == (ranks, ranks)
    assert max(found.standard_errors) == pytest.approx(0, abs=1e-12)
    assert (found.expected_overlap, found.n_unresolved) == (1, 0)
    assert found.rank_noise == 0
    assert found.score_noise == pytest.approx(0, abs=1e-9)
    assert set(found.shares) == {1}


def test_plans_of_other_examples_are_no_further_apart_than_the_noise():
    """Of forty pairs of data sets that nothing tells apart, few exceed what either one says."""
    within = {"ranks": 0, "scores": 0}
    for trial in range(40):
        energies = drawn_energies(128, seed=0)[:1] * np.random.default_rng(trial).lognormal(
            0, 0.6, (128, len(MODULES))
        )
        both = [statistics_of(part) for part in (energies[:64], energies[64:])]
        plans = [allocate(score(part), 8) for part in both]
        noise = [
            confidence_of(*pair, n_resamples=200) for pair in zip(both, plans, strict=True)
        ]
        shares = [np.array(list(plan.scores.values())) for plan in plans]
        apart = np.abs(np.subtract(*(s / s.sum() for s in shares))).sum() / 2
        within["ranks"] += moved_share(plans[0].ranks, plans[1].ranks) <= noise[0].rank_noise
        within["scores"] += apart <= noise[0].score_noise

    assert within["ranks"] >= 30
    assert within["scores"] >= 30


def test_more_examples_leave_less_doubt():
    """The same examples four times over halve the errors and make plans agree more."""
    few, many = drawn_energies(16), np.tile(drawn_energies(16), (16, 1))
    found = []
    for energies in (few, many):
        statistics = statistics_of(energies)
        found.append(confidence_of(statistics, allocate(score(statistics), 8)))

    ratio = np.array(found[0].standard_errors) / np.array(found[1].standard_errors)
    assert ratio == pytest.approx(4, rel=0.15)
    assert found[1].expected_overlap > found[0].expected_overlap
    assert found[1].rank_noise < found[0].rank_noise
    assert found[1].score_noise == pytest.approx(found[0].score_noise / 4, rel=0.2)


def test_the_same_examples_in_another_scale_or_thread_give_the_same_bytes():
    """LoRA scale and the unit of the loss enter the errors only."""
    energies = drawn_energies(30)
    plain, scaled = statistics_of(energies), statistics_of(energies * 2.0**20)
    found, again, other = (
        confidence_of(s, allocate(score(s), 8)).to_json() for s in (plain, plain, scaled)
    )

    assert found == again
    assert other.pop("standard_errors") == pytest.approx(
        [2.0**20 * error for error in found.pop("standard_errors")], rel=0.01
    )
    assert found == other


def test_overlap_is_the_mean_over_neighbours():
    """At costs, too; a module without ranks counts for nothing, and no ranks are no distance."""
    ranks = np.array([[0, 4, 2], [2, 2, 2], [1, 3, 2]])
    costs = np.array([10, 30, 5])
    named = [dict(zip("abc", row, strict=True)) for row in ranks.tolist()]
    by_name = dict(zip("abc", costs.tolist(), strict=True))

    for weights, used in ((None, None), (costs, by_name)):
        apart = [moved_share(named[i], named[i - 1], costs=used) for i in range(3)]
        assert expected_overlap(ranks, weights) == pytest.approx(1 - sum(apart) / 3)
    assert expected_overlap(np.zeros((2, 3), dtype=np.int64)) == 1


@pytest.mark.parametrize(
    ("options", "changes", "reason"),
    [
        ({"rule": "uniform"}, {}, "looks at no score"),
        ({"rule": "random"}, {}, "looks at no score"),
        ({}, {"example_energies": {}}, "no value per example"),
    ],
    ids=["uniform", "random", "sampled"],
)
def test_what_is_not_known_is_said(options, changes, reason):
    """As a sentence, and as an error to whom asks nevertheless."""
    statistics = statistics_of(drawn_energies(8), **changes)
    plan = allocate(score(statistics), 8, **options)

    assert reason in obstacle(statistics, plan)
    with pytest.raises(InvalidOption, match=reason):
        confidence_of(statistics, plan)


@pytest.mark.parametrize("method", ["kappa", "cka-layers", "eva"])
def test_a_method_without_gradients_is_named(method):
    """Whether or not a run has kept examples' energies for another method."""
    statistics = statistics_of(drawn_energies(8))
    plan = replace(allocate(score(statistics), 8), method=method)

    assert f"method {method!r} looks at no gradient" in obstacle(statistics, plan)


def test_one_example_says_nothing():
    """All resamples are that one example, and would agree."""
    statistics = statistics_of(drawn_energies(1))

    assert "one example" in obstacle(statistics, allocate(score(statistics), 8))


def test_scores_that_are_no_means_are_told_by_their_values():
    """Whatever they are called: the largest rows are no mean of the examples' energies."""
    statistics = statistics_of(drawn_energies(8))
    uneven = dict(statistics.row_energies)
    uneven[MODULES[0].name] = uneven[MODULES[0].name] * np.linspace(0, 2, MODULES[0].d_out)
    statistics = replace(statistics, row_energies=uneven)

    assert obstacle(statistics, allocate(score(statistics), 8)) is None
    by_max = allocate(score(statistics, aggregation="max"), 8)
    assert "no means of a value per example" in obstacle(statistics, by_max)


def test_a_plan_that_its_scores_do_not_give_is_refused():
    """Resamples would not give it either; what it was allocated with stands on the plan."""
    statistics = statistics_of(drawn_energies(8))
    plan = allocate(score(statistics), 8, multiple_of=4)

    confidence_of(statistics, plan, n_resamples=2)
    with pytest.raises(InvalidOption, match="something else than allocate"):
        confidence_of(statistics, replace(plan, constraints=Constraints()))
    with pytest.raises(InvalidOption, match="n_resamples=1"):
        confidence_of(statistics, plan, n_resamples=1)


@pytest.mark.parametrize(
    ("n_modules", "n_examples", "wanted"),
    [
        (1, 512, 2000),
        (65, 2097, 2000),
        (224, 512, 585),
        (10_000, 512, 200),
        (24, 16_384, 256),
        (10_000, 16_384, 200),
        (24, 4096 * 1024, 40),
    ],
)
def test_plans_of_many_modules_or_examples_get_fewer_resamples(n_modules, n_examples, wanted):
    """So that a plan is solved anew at once."""
    assert resamples_for(n_modules, n_examples) == wanted


@pytest.mark.parametrize("block", [1, 23, 24, 100, 23 * 60, 10**6])
def test_blocks_of_resamples_are_all_of_them_together(block):
    """Bit by bit what one matrix of all counts gives, drawn by one call."""
    energies = drawn_energies(23)
    whole = np.rint(energies / energies.max(axis=0) * 2**30)
    drawn = np.random.default_rng(3).integers(0, 23, size=(60, 23))
    counts = np.array([np.bincount(row, minlength=23) for row in drawn], dtype=np.float64)

    found = resampled_means(energies, 60, seed=3, block=block)

    assert np.array_equal(found, counts @ whole / whole.sum(axis=0))


def test_many_examples_take_no_more_memory_than_a_block():
    """All counts of these resamples are 64 MB, a block of two is 0.3 MB."""
    energies = drawn_energies(20_000)[:, :3]
    tracemalloc.start()
    try:
        resampled_means(energies, 400, seed=0, block=40_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 8 * (4 * energies.size + 5 * 40_000)


def test_a_rank_map_holds_short_numbers():
    """Three digits of an error, three of a share, in the order of the modules."""
    statistics = statistics_of(drawn_energies(12))
    data = confidence_of(statistics, allocate(score(statistics), 8)).to_json()

    assert len(data["standard_errors"]) == len(data["shares"]) == len(MODULES)
    assert all(len(repr(share)) <= 5 for share in data["shares"])
    assert all(float(f"{error:.2e}") == error for error in data["standard_errors"])
