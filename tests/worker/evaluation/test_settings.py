"""Settings that make no evaluation are refused, and all are read back as they were."""

import json

import pytest

from fimlora.errors import InvalidOption
from fimlora_worker.evaluation.runs import RunResult, RunSpec
from fimlora_worker.evaluation.settings import EvaluationSettings, default_settings
from support.evaluations import make_result, make_settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ("uniform", "fim")}, "random"),
        ({"arms": ("random", "fim")}, "uniform"),
        ({"arms": ("uniform", "random", "random")}, "twice"),
        ({"learning_rates": (1e-3,)}, "at least two"),
        ({"learning_rates": (2e-3, 1e-3)}, "ascending"),
        ({"learning_rates": (1e-3, 1e-3)}, "ascending"),
        ({"learning_rates": (0.0, 1e-3)}, "above 0"),
        ({"learning_rates": (1e-3, float("nan"))}, "above 0"),
        ({"seeds": (0,)}, "no spread"),
        ({"seeds": (0, 100)}, "no seed twice"),
        ({"tuning_seeds": ()}, "tuning_seeds"),
        ({"n_steps": 0}, "n_steps"),
        ({"held_out_share": 1.0}, "held_out_share"),
    ],
)
def test_what_makes_no_evaluation_is_refused_by_name(changes, message):
    with pytest.raises(InvalidOption, match=message):
        make_settings(**changes)


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("task", ["sequence_classification", "causal_lm"])
def test_settings_go_through_json(task, quick):
    settings = default_settings(("uniform", "random", "spectral"), task=task, quick=quick)

    assert EvaluationSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


def test_results_go_through_json_also_without_a_loss():
    """A loss that is no number is null on the way, and the worst afterwards."""
    spec = RunSpec("fim", 0.1 + 0.2, 7, "final")
    for loss in (0.123456789012345678, float("nan")):
        result = make_result(spec, loss, accuracy=0.5)

        again = RunResult.from_json(json.loads(json.dumps(result.to_json(), allow_nan=False)))

        assert again.spec == spec
        assert again.spec.key == spec.key
        assert again.loss == result.loss
        assert again.has_diverged is result.has_diverged is (loss != loss)
        assert str(again) == str(result)


def test_keys_tell_runs_apart():
    """Arm, rate, seed and phase all count."""
    specs = [
        RunSpec(arm, rate, seed, phase)
        for arm in ("fim", "uniform")
        for rate in (1e-3, 1.0000000000000002e-3)
        for seed in (1, 11)
        for phase in ("tuning", "final")
    ]

    assert len({spec.key for spec in specs}) == len(specs)
