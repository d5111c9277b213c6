"""A rule decides which scores are taken, and what cannot be scored by is refused by name."""

import math
import subprocess
import sys
from pathlib import Path

import pytest

from fimlora import Scores, allocate, measure, score
from fimlora.errors import InvalidOption
from support.models import make_batch, tiny

NAME = "bert_classifier"


@pytest.fixture(scope="module")
def statistics():
    model, targets = tiny(NAME)
    return measure(model, [make_batch(NAME, [3, 5])], target_modules=targets, record="spectra")


def test_an_unknown_rule_is_refused_with_those_there_are(statistics):
    """It is not scored like the rule that is the default."""
    allowed = "proportional, spectral, uniform, random"

    with pytest.raises(InvalidOption, match=f"'greedy' is unknown; expected one of {allowed}"):
        score(statistics, rule="greedy")


@pytest.mark.parametrize("rule", ["proportional", "spectral"])
@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"scale": 0}, "scale=0: it must be a number above 0 and finite"),
        ({"scale": -1}, "scale=-1"),
        ({"scale": math.nan}, "scale=nan"),
        ({"scale": math.inf}, "scale=inf"),
        ({"aggregation": "median"}, "aggregation='median'; allowed are 'mean', 'max', 'l2'"),
        ({"estimator": "sampled"}, "estimator='sampled' has no scores here; recorded: 'exact'"),
    ],
)
def test_what_cannot_be_scored_by_is_refused_whatever_the_rule(statistics, rule, option, said):
    """Also where the rule would not look at it."""
    with pytest.raises(InvalidOption, match=said):
        score(statistics, rule=rule, **option)


def test_a_scale_enters_the_scores_by_its_square(statistics):
    """And what is said of the measurement names it."""
    before, after = score(statistics), score(statistics, scale=3 * statistics.scale)

    assert after.provenance["scale"] == 3 * statistics.scale
    for name, value in before.by_module.items():
        assert after.by_module[name] == pytest.approx(9 * value, rel=1e-12)


def test_spectral_scores_are_the_recorded_spectra(statistics):
    """And no aggregation is said to have made them."""
    scores = score(statistics, rule="spectral")

    assert scores.spectra.keys() == {module.name for module in statistics.modules}
    assert not scores.by_module
    assert "aggregation" not in scores.provenance


@pytest.mark.parametrize("rule", ["proportional", "uniform", "random"])
def test_a_rule_that_goes_by_scores_is_not_given_spectra(statistics, rule):
    """The message says how to score for it."""
    scores = score(statistics, rule="spectral")

    with pytest.raises(InvalidOption, match=f"score with rule='{rule}', too"):
        allocate(scores, 4, rule=rule)


def test_something_else_than_statistics_is_refused_with_the_way_on():
    """In a process of its own, where annotations are not checked before."""
    code = (
        "from fimlora import score\n"
        "try:\n    score({'a': 1.0})\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
    )
    path = str(Path(__file__).parents[3] / "worker")
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": path},
        check=True,
        capture_output=True,
        text=True,
    )

    assert done.stdout.startswith("InvalidOption score takes Statistics, not dict")
    assert Scores.__name__ in done.stdout
