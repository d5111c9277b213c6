"""Fisher information over that of the null."""

from dataclasses import replace

import numpy as np
import pytest

from fimlora import measure, score
from fimlora.errors import InvalidOption
from fimlora.methods.fim import module_scores
from fimlora.methods.fim_over_null import FLOOR
from support.gradients import noise, statistics_of
from support.models import make_batch, tiny

SIZES = {"a": 1.0, "b": 10.0, "c": 100.0, "d": 3.0, "e": 0.25}


def run_and_null(*, times=1.0, run=SIZES, null=SIZES):
    """Statistics whose null has other gradients, each module of its own size."""
    run, null = (
        {name: times * size * noise(5, 6, 8, seed=seed + i)
         for i, (name, size) in enumerate(sizes.items())}
        for seed, sizes in ((0, run), (50, null))
    )  # fmt: skip
    return replace(statistics_of(run), null=statistics_of(null))


def test_each_score_is_the_ratio_of_two():
    """By hand, with the null's own sums."""
    statistics = run_and_null()
    fim, of_null = (module_scores(s) for s in (statistics, statistics.null))

    found = score(statistics, "fim-over-null").by_module

    floor = FLOOR * np.median([*of_null.values()])
    assert sum(value < floor for value in of_null.values()) == 1  # so that it does something
    assert found == {n: pytest.approx(fim[n] / max(of_null[n], floor)) for n in SIZES}


def test_it_has_no_unit():
    """Gradients a thousand times as large, or another scale, change no score."""
    before = score(run_and_null(), "fim-over-null").by_module

    assert score(run_and_null(times=1000), "fim-over-null").by_module == {
        name: pytest.approx(value) for name, value in before.items()
    }
    assert score(run_and_null(), "fim-over-null", scale=6).by_module == {
        name: pytest.approx(value) for name, value in before.items()
    }


def test_labels_that_mean_nothing_score_alike_whatever_the_size():
    """And a module that the labels touch stands out, though its gradients are small."""
    same = run_and_null(run=SIZES | {"d": 9.0})

    found = score(same, "fim-over-null").by_module

    assert max(found, key=found.__getitem__) == "d"
    others = [found[name] for name in "bc"]
    assert max(others) < 2 * min(others)
    assert module_scores(same)["c"] > 50 * module_scores(same)["d"]


def test_a_null_without_any_gradient_leaves_the_order_of_fim():
    """Nothing is divided by zero."""
    statistics = run_and_null(null=dict.fromkeys(SIZES, 0.0))
    fim = module_scores(statistics)

    found = score(statistics, "fim-over-null").by_module

    assert sorted(found, key=found.__getitem__) == sorted(fim, key=fim.__getitem__)


def test_one_module_that_the_null_reaches_is_no_excuse_for_zero():
    """Most of the null is zero: its largest stands in for the median."""
    statistics = run_and_null(null=dict.fromkeys("abde", 0.0) | {"c": 2.0})

    found = score(statistics, "fim-over-null").by_module

    assert all(0 < value < np.inf for value in found.values())


def test_without_a_null_it_says_how_to_have_one():
    """The run must go backward twice."""
    with pytest.raises(InvalidOption, match=r"needs the null, and .* measure with null=True"):
        score(statistics_of({"m": noise(3, 4, 6, seed=0)}), "fim-over-null")


def test_rows_of_one_label_have_no_null():
    """Exchanged for each other they are the run itself, and a ratio of one says nothing."""
    model, targets = tiny("bert_classifier")
    batches = [make_batch("bert_classifier", [15, 9, 7], seed=i) for i in range(2)]
    for batch in batches:
        batch["labels"][:] = 1

    statistics = measure(model, batches, target_modules=targets, null=True)

    with pytest.raises(InvalidOption, match="needs the null, and all rows have one label"):
        score(statistics, "fim-over-null")


@pytest.mark.parametrize("estimator", ["exact", "sketched", "sampled"])
def test_a_run_that_has_measured_its_null_can_be_scored(estimator):
    """Whatever the estimator: both have the same one."""
    model, targets = tiny("bert_classifier")
    batches = [make_batch("bert_classifier", [15, 9, 7, 3, 5, 8], seed=i) for i in range(3)]

    statistics = measure(model, batches, target_modules=targets, null=True, estimator=estimator)

    scores = score(statistics, "fim-over-null")
    assert scores.by_module.keys() == {module.name for module in statistics.modules}
    assert all(np.isfinite(value) and value > 0 for value in scores.by_module.values())
    assert scores.rule == "proportional"
