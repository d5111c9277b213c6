"""Which experts train, as requests may ask for it."""

import pytest
from pydantic import ValidationError

from fimlora_contract.comparison_requests import ComparisonRequest, JobComparisonRequest
from fimlora_contract.evaluations import EvaluationRequest
from fimlora_contract.requests import CalibrationRequest, PlanRequest
from fimlora_contract.sweeps import SweepRequest

EXPERTS = {"select": "routed", "share": 0.25}
ASKED = {
    "base_model": "org/mixture",
    "dataset": "org/rows",
    "budget": 8,
    "target_parameters": "all",
}

FISHER = {"select": "fisher", "share": 0.25}
OWN = {"target_parameters": None, "adapter": {}}


def calibration(**changes):
    fields = (
        ASKED | {"adapter": {"weights": True}, "allocation": {"experts": EXPERTS}} | changes
    )
    return CalibrationRequest.model_validate(fields)


def test_a_selection_is_read_and_left_out_where_there_is_none():
    """Requests without one are what they were, and so are their digests."""
    assert calibration().allocation.experts.share == 0.25
    assert PlanRequest(budget=8, allocation={"experts": EXPERTS}).allocation.experts
    plain = CalibrationRequest.model_validate(ASKED)
    assert "experts" not in plain.model_dump(mode="json")["allocation"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"allocation": {"experts": {"select": "routed"}}},
            "exactly one of share and coverage",
        ),
        (
            {"allocation": {"experts": EXPERTS | {"coverage": 0.5}}},
            "exactly one of share and coverage",
        ),
        ({"allocation": {"experts": {"select": "routed", "share": 1.5}}}, "less than or equal"),
        ({"allocation": {"experts": {"select": "best", "share": 0.5}}}, "'routed', 'fisher'"),
        ({"adapter": {}}, "give adapter.weights=true"),
        ({"adapter": {"init": "zeros"}}, "kaiming alone is written"),
        ({"budget": {"bytes": 100_000}}, "give the budget in parameters"),
        ({"allocation": {"experts": EXPERTS, "method": "spectral"}}, "take one of fim, "),
        ({"calibration": {"n_batches": "auto"}}, "give a number of batches"),
        ({"target_parameters": None}, "tokens are counted of fused experts alone"),
        (
            OWN | {"allocation": {"experts": {"select": "random", "coverage": 0.5}}},
            "at random with a share",
        ),
        (
            OWN | {"allocation": {"experts": FISHER, "method": "eva"}},
            "no Fisher information is measured",
        ),
    ],
)
def test_what_does_not_go_with_it_is_refused(changes, message):
    """By name, with what does."""
    with pytest.raises(ValidationError, match=message):
        calibration(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"adapter": {"init": "lora-one"}},
        {"budget": {"bytes": 100_000}},
        {"allocation": {"experts": FISHER, "method": "spectral"}},
        {"allocation": {"experts": {"select": "random", "share": 0.5}, "method": "eva"}},
    ],
    ids=str,
)
def test_experts_that_are_modules_of_their_own_are_targets_or_not(changes):
    """The config alone says it all, so nothing is demanded or refused for their sake."""
    assert calibration(**OWN | {"allocation": {"experts": FISHER}} | changes)


def test_methods_are_compared_on_selected_experts():
    """By default those that go by each expert; named ones that do not are refused."""
    fields = ASKED | {"allocation": {"experts": EXPERTS}}
    some = ComparisonRequest.model_validate(fields)
    assert some.methods_measured == ("fim", "fim-over-null", "uniform", "random")
    with pytest.raises(ValidationError, match="take one of fim, "):
        ComparisonRequest.model_validate(fields | {"methods": ["fim", "spectral"]})
    own = fields | {"target_parameters": None, "allocation": {"experts": FISHER}}
    assert "spectral" in ComparisonRequest.model_validate(own).methods_measured
    assert JobComparisonRequest.model_validate({k: fields[k] for k in ("budget", "allocation")})


def test_selected_experts_are_trained_beside_random_ones():
    """An arm more than without; what would show nothing of them is refused."""
    fields = ASKED | {"allocation": {"experts": EXPERTS}}
    asked = EvaluationRequest.model_validate(fields)
    plain = EvaluationRequest.model_validate(ASKED)
    assert asked.arms == (*plain.arms, "random-experts")
    assert asked.n_runs * 3 == plain.n_runs * 4
    random = {"allocation": {"experts": {"select": "random", "share": 0.5}}}
    for changes, message in (
        (random, "give routed or fisher"),
        ({"plans": {"mine": "name/tag"}}, "leave plans out"),
        ({"methods": ["uniform"]}, "give a method that is neither"),
        ({"methods": ["spectral"]}, "take one of fim, "),
        (
            {"target_parameters": None, "allocation": {"experts": FISHER}, "methods": ["eva"]},
            "no Fisher information is measured",
        ),
    ):
        with pytest.raises(ValidationError, match=message):
            EvaluationRequest.model_validate(fields | changes)


def test_a_sweep_is_of_all_experts():
    """It says why, and what to ask instead."""
    fields = {"budget": 8, "allocation": {"experts": EXPERTS}}
    with pytest.raises(ValidationError, match=r"fewer batches.*POST /jobs/\{id\}/compare"):
        SweepRequest.model_validate(fields)
