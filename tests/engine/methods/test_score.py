"""A method decides which scores are taken, and what cannot be scored by is refused by name."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fimlora import RankPlan, Scores, allocate, measure, score
from fimlora.errors import InvalidOption
from fimlora.methods.registry import METHODS, records_needed
from support.models import make_batch, tiny

NAME = "bert_classifier"


@pytest.fixture(scope="module")
def statistics():
    model, targets = tiny(NAME)
    return measure(
        model, [make_batch(NAME, [3, 5, 4, 6])], target_modules=targets,
        record=records_needed(*METHODS), null=True, retain=[make_batch(NAME, [4, 2], seed=1)],
    )  # fmt: skip


def test_an_unknown_method_is_refused_with_those_there_are(statistics):
    """It is not scored like the method that is the default."""
    allowed = ", ".join(METHODS)

    with pytest.raises(InvalidOption, match=f"'greedy' is unknown; expected one of {allowed}"):
        score(statistics, "greedy")


@pytest.mark.parametrize("method", METHODS)
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
def test_what_cannot_be_scored_by_is_refused_whatever_the_method(
    statistics, method, option, said
):
    """Also where the method would not look at it."""
    with pytest.raises(InvalidOption, match=said):
        score(statistics, method, **option)


def test_a_scale_enters_the_scores_by_its_square(statistics):
    """And what is said of the measurement names it."""
    before, after = score(statistics), score(statistics, scale=3 * statistics.scale)

    assert after.provenance["scale"] == 3 * statistics.scale
    for name, value in before.by_module.items():
        assert after.by_module[name] == pytest.approx(9 * value, rel=1e-12)


def test_spectral_scores_are_the_recorded_spectra(statistics):
    """And no aggregation is said to have made them."""
    scores = score(statistics, "spectral")

    assert scores.spectra.keys() == {module.name for module in statistics.modules}
    assert not scores.by_module
    assert "aggregation" not in scores.provenance


@pytest.mark.parametrize("rule", ["proportional", "uniform", "random"])
def test_a_rule_that_goes_by_scores_is_not_given_spectra(statistics, rule):
    """The message says how to score for it."""
    scores = score(statistics, "spectral")

    with pytest.raises(InvalidOption, match="score with another method, such as 'fim'"):
        allocate(scores, 4, rule=rule)


def test_what_was_not_recorded_is_said_with_how_to_record_it(statistics):
    """Before a plan is tried."""
    bare = replace(statistics, spectra={}, mean_energies={}, spectrum_errors={})

    with pytest.raises(InvalidOption, match=r"'spectral' needs spectra, .*record='spectra'"):
        score(bare, "spectral")


@pytest.mark.parametrize("method", METHODS)
def test_scores_name_the_method_and_the_rule_that_they_go_with(statistics, method):
    """Both are in the plan, and `allocate` takes the rule from them."""
    plan = allocate(score(statistics, method), 2)

    assert (plan.method, plan.rule) == (method, METHODS[method].rule)
    assert RankPlan.from_json(plan.to_json()) == plan


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
