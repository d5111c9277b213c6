"""Scores from sums that can be checked by hand."""

import numpy as np
import pytest

from fimlora import TargetModule, measure
from fimlora.errors import InvalidOption
from fimlora.methods.fim import module_scores
from fimlora.statistics import Statistics
from fimlora.statistics.options import Estimator
from support.models import make_batch, tiny
from support.reference import relative_error

# Two examples, two batches, s = 2, a module of 3 inputs and 2 outputs, A of rank 2.
ROWS = np.array([9.0, 18.0])  # so expected F = 4 / (3 * 3 * 2) * ROWS = [2, 4] per column
SQUARES = np.array([[1.0, 2.0], [3.0, 6.0]])  # so F = 4 / 2 * SQUARES = [[2, 4], [6, 12]]
BATCHES = np.array([13.5, 18.0])  # so its expectation is 4 / (3 * 3 * 2) * BATCHES = [3, 4]


def make(estimator="both"):
    kind = Estimator(estimator)
    return Statistics(
        modules=(TargetModule("m", d_in=3, d_out=2),),
        estimator=kind,
        n_examples=2,
        n_batches=2,
        base_parameters=6,
        loss="custom",
        dtype="float32",
        scale=2,
        train_mode=False,
        rank=2 if kind.has_sampled else None,
        seed=0 if kind.has_sampled else None,
        row_energies={"m": ROWS} if kind.has_examples else {},
        example_energies={"m": np.array([13.5, 13.5])} if kind.has_examples else {},
        squared_gradients={"m": SQUARES} if kind.has_sampled else {},
        batch_energies={"m": BATCHES} if kind is Estimator.BOTH else {},
    )


@pytest.mark.parametrize(
    ("estimator", "aggregation", "wanted"),
    [
        ("exact", "mean", 3.0),
        ("exact", "max", 4.0),
        ("exact", "l2", 20**0.5),
        ("sampled", "mean", 6.0),
        ("sampled", "max", 12.0),
        ("sampled", "l2", 100**0.5),
        ("batch", "mean", 3.5),
        ("batch", "max", 4.0),
        ("batch", "l2", 5.0),
    ],
)
def test_each_aggregation_by_hand(estimator, aggregation, wanted):
    """Mean, maximum and Euclidean norm of a column of F."""
    assert module_scores(make(), aggregation=aggregation, estimator=estimator) == {
        "m": pytest.approx(wanted)
    }


@pytest.mark.parametrize(
    ("recorded", "wanted"), [("exact", 3.0), ("both", 3.0), ("sampled", 6.0)]
)
def test_what_was_recorded_is_scored(recorded, wanted):
    """And the exact estimate where there are both."""
    assert module_scores(make(recorded)) == {"m": pytest.approx(wanted)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aggregation": "sum"}, "aggregation='sum'; allowed are 'mean', 'max', 'l2'"),
        ({"estimator": "sampled"}, "estimator='sampled' has no scores here; recorded: 'exact'"),
        ({"estimator": "both"}, "estimator='both' has no scores"),
        ({"estimator": "batch"}, "estimator='batch' has no scores here; recorded: 'exact'"),
    ],
    ids=["unknown_aggregation", "not_recorded", "two_at_once", "not_asked_for"],
)
def test_what_cannot_be_scored_is_refused(options, message):
    """The message says what there is."""
    with pytest.raises(InvalidOption, match=message):
        module_scores(make("exact"), **options)


@pytest.mark.parametrize("aggregation", ["mean", "max", "l2"])
def test_the_scale_is_a_common_factor(aggregation):
    """Scores grow with its square, in every module."""
    model, targets = tiny("bert_classifier")
    batches = [make_batch("bert_classifier", [5, 3])]
    one, three = (
        module_scores(
            measure(model, batches, target_modules=targets, scale=scale),
            aggregation=aggregation,
        )
        for scale in (1, 3)
    )

    assert three == pytest.approx({name: 9 * score for name, score in one.items()})


def test_sampled_scores_of_single_examples_average_to_the_exact_one():
    """Over many draws of A, at one example per batch, the two estimators meet."""
    model, _ = tiny("bert_classifier")
    rows = make_batch("bert_classifier", [5, 5, 5])
    batches = [{k: v[i : i + 1] for k, v in rows.items()} for i in range(3)]
    options = {"target_modules": ["query", "output.dense"], "estimator": "both"}

    statistics = measure(model, batches, rank=4000, **options)

    exact, sampled = (
        module_scores(statistics, estimator=name) for name in ("exact", "sampled")
    )
    # Relative noise sqrt(2 / rank) = 2 % at worst, of one draw.
    assert relative_error(list(sampled.values()), list(exact.values())) <= 0.05
