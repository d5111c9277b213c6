"""Plans of several methods side by side: each figure against a slow and obvious one."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import stats

from fimlora import Budget, Statistics, allocate, compare, measure, score
from fimlora.confidence.compare_picture import render_comparison
from fimlora.confidence.correlation import spearman
from fimlora.confidence.signal import signal_of
from fimlora.errors import InvalidOption
from fimlora.methods.registry import METHODS, records_needed
from support.gradients import noise, statistics_of
from support.models import make_batch, tiny
from support.results import make_statistics

NAME = "llama_gqa_lm"
UNITS = [Budget("rank", 4), Budget("parameters", 5000)]
CONTROLS = {"uniform", "random"}


@pytest.fixture(scope="module")
def statistics() -> Statistics:
    """Of one run that has recorded what the methods need."""
    model, targets = tiny(NAME)
    batches = [make_batch(NAME, lengths, seed=i) for i, lengths in enumerate([[31, 9, 3], [7]])]
    return measure(
        model, batches, target_modules=targets, record=records_needed(*METHODS), null=True
    )


@pytest.mark.parametrize("budget", UNITS, ids=lambda budget: budget.unit)
def test_plans_are_those_of_each_method_alone(statistics, budget):
    """All that the statistics can give, with their options, from one set of passes."""
    found = compare(statistics, budget, r_min=1, multiple_of=2, seed=3)

    assert set(found.plans) | set(found.left_out) == set(METHODS)
    assert len(found.plans) >= 6
    for method, plan in found.plans.items():
        alone = allocate(score(statistics, method), budget, r_min=1, multiple_of=2, seed=3)
        assert plan == alone


@pytest.mark.parametrize("budget", UNITS, ids=lambda budget: budget.unit)
def test_each_pair_is_compared_as_one_would_by_hand(statistics, budget):
    """Spearman's by scipy; the overlap rank by rank, or parameter by parameter."""
    found = compare(statistics, budget)

    assert [(p.a, p.b) for p in found.pairs] == [*combinations(found.plans, 2)]
    for pair in found.pairs:
        a, b = (found.plans[method] for method in (pair.a, pair.b))
        both = spent_a = spent_b = 0
        for module in a.modules:
            each = 1 if budget.unit == "rank" else module.cost
            both += each * min(a.ranks[module.name], b.ranks[module.name])
            spent_a += each * a.ranks[module.name]
            spent_b += each * b.ranks[module.name]
        assert pair.overlap == pytest.approx(2 * both / (spent_a + spent_b), abs=1e-6)
        by_ranks = [[plan.ranks[m.name] for m in a.modules] for plan in (a, b)]
        assert_correlation(pair.rank_correlation, *by_ranks)
        if CONTROLS & {pair.a, pair.b}:
            assert pair.score_correlation is None
        else:
            values = [[found.scores[m][n] for n in a.ranks] for m in (pair.a, pair.b)]
            assert_correlation(pair.score_correlation, *values)


def assert_correlation(found, a, b):
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_spearman_shares_places_of_equal_values(seed):
    """As scipy has it, also where most are equal."""
    random = np.random.default_rng(seed)
    a, b = random.integers(0, 4, (2, 30)).tolist()

    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-6)
    assert spearman(a, a) == 1
    assert spearman(a, [-value for value in a]) == -1
    assert spearman(a, [2] * 30) is None


def test_a_signal_is_stated_where_null_and_halves_were_measured():
    """That of each plan, as it is by itself; a control has none."""
    model, targets = tiny(NAME)
    batches = [make_batch(NAME, [31, 9, 7, 3], seed=i) for i in range(4)]
    record = records_needed(*METHODS)
    options = {"target_modules": targets, "record": record, "null": True, "halves": True}
    statistics = measure(model, batches, **options)

    found = compare(statistics, 4, r_min=1, multiple_of=1)

    told = {n for n, m in METHODS.items() if n not in CONTROLS and not m.needs_null}
    told -= {name for name in told if METHODS[name].needs_retain}
    assert set(found.signals) == told >= {"fim", "coherent", "spectral", "fisher-layers"}
    for method, signal in found.signals.items():
        assert signal == signal_of(statistics, found.plans[method]).to_json()
    rows = {row["method"]: row["signal"] for row in found.to_json()["methods"]}
    assert rows["fim"] == found.signals["fim"]
    assert rows["uniform"] is None


def test_groups_that_can_be_looked_through_once_tie_the_plans_of_all_methods():
    """A generator is as good as a list."""
    statistics = make_statistics()
    names = [module.name for module in statistics.modules][:2]

    listed = compare(statistics, 4, groups=[names])
    streamed = compare(statistics, 4, groups=(group for group in [names]))

    assert streamed == listed
    for plan in streamed.plans.values():
        assert plan.ranks[names[0]] == plan.ranks[names[1]]


def test_what_was_not_recorded_is_left_out_with_the_reason():
    """By itself; a method that was named is refused."""
    bare = make_statistics()

    found = compare(bare)

    assert set(found.plans) == {"fim", "fisher-layers", "uniform", "random"}
    assert "record='spectra'" in found.left_out["coherent"]
    with pytest.raises(InvalidOption, match="'coherent' needs spectra"):
        compare(bare, methods=["fim", "coherent"])


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        (["fim", "best"], "method 'best' is unknown; expected one of fim, "),
        (["fim", "fim"], "comparing takes at least two"),
        ([], "comparing takes at least two"),
    ],
)
def test_what_cannot_be_compared_is_refused(methods, said):
    """By name, before anything is planned."""
    with pytest.raises(InvalidOption, match=said):
        compare(make_statistics(), methods=methods)


def test_the_spectrum_of_a_module_counts_with_its_energy():
    """What the method goes by, not what its plan happens to capture of it."""
    G = {name: i + noise(9, 8, 8, seed=i) for i, name in enumerate("abc", start=1)}
    statistics = statistics_of(G)

    found = compare(statistics, 2, methods=["spectral", "fim"])

    energies = {name: np.square(gradients.mean(axis=0)).sum() for name, gradients in G.items()}
    assert found.scores["spectral"] == pytest.approx(energies)


def test_a_comparison_is_the_same_data_and_the_same_picture_every_time(statistics, tmp_path):
    """From memory or from a file; the data has each module once, the picture each method."""
    statistics.save(tmp_path / "s")
    found, again = compare(statistics, 4), compare(Statistics.load(tmp_path / "s"), 4)

    data = found.to_json()
    assert json.dumps(data) == json.dumps(again.to_json())
    assert render_comparison(found) == render_comparison(again)
    assert data["provenance"] == statistics.provenance()
    assert [row["method"] for row in data["methods"]] == list(found.plans)
    for row in data["methods"]:
        assert (row["ranks"], row["parameters"]) == (
            found.plans[row["method"]].spent.ranks,
            found.plans[row["method"]].spent.parameters,
        )
    for row in data["modules"]:
        assert row["ranks"] == {m: plan.ranks[row["name"]] for m, plan in found.plans.items()}
        assert not CONTROLS & set(row["scores"])
    picture = ElementTree.fromstring(render_comparison(found))
    words = [e.text for e in picture.iter() if e.tag.endswith("text")]
    assert all(words.count(method) >= 1 for method in found.plans)
    assert len([word for word in words if "%" in word]) == len(found.pairs)


def test_a_scale_changes_scores_and_no_rank(statistics):
    """All methods see the same statistics."""
    before, after = compare(statistics, 4), compare(statistics, 4, scale=6)

    assert [p.ranks for p in before.plans.values()] == [p.ranks for p in after.plans.values()]
    assert {p.scale for p in after.plans.values()} == {6}


def test_comparing_needs_no_torch():
    """A service answers from stored statistics."""
    code = (
        "import sys; from fimlora import compare; "
        "import fimlora.confidence.compare_picture; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_all_methods_may_lack_something(statistics):
    """Then nothing is compared in silence."""
    bare = replace(statistics, example_energies={}, spectra={}, quantities={}, null=None)

    found = compare(bare, 4)

    assert set(found.plans) == {"fim", "uniform", "random"}
    assert set(found.left_out) == set(METHODS) - set(found.plans)
