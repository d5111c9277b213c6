"""Methods that train, start an adapter or cut one: known by name, refused with the way to go."""

import pytest
from pydantic import ValidationError

from fimlora_contract.comparison_requests import ComparisonRequest, JobComparisonRequest
from fimlora_contract.evaluations import EvaluationRequest
from fimlora_contract.methods import MethodName
from fimlora_contract.requests import CalibrationRequest, PlanRequest
from fimlora_contract.training_time import TRAINING_TIME

BODY = {"base_model": "tiny", "dataset": "local:rows", "budget": 8}


@pytest.mark.parametrize("name", sorted(TRAINING_TIME))
def test_each_is_told_why_not_and_where_it_is_offered(name):
    """Wherever a method is named."""
    reason, instead = TRAINING_TIME[name]
    one = {"allocation": {"method": name}}
    several = {"methods": ["fim", name]}
    for model, body in (
        (CalibrationRequest, BODY | one),
        (PlanRequest, {"budget": 8} | one),
        (ComparisonRequest, BODY | several),
        (EvaluationRequest, BODY | several),
        (JobComparisonRequest, {"budget": 8} | several),
    ):
        with pytest.raises(ValidationError) as refused:
            model.model_validate(body)

        assert f"method {name} {reason}; {instead}" in str(refused.value)


def test_spelling_does_not_hide_one():
    """Papers write them in capitals."""
    with pytest.raises(ValidationError, match="method adalora moves ranks while"):
        PlanRequest.model_validate({"budget": 8, "allocation": {"method": "AdaLoRA"}})


def test_none_of_them_is_a_method_of_ours():
    """And what nobody knows is refused with those there are."""
    assert not set(TRAINING_TIME) & set(MethodName.__args__)
    with pytest.raises(ValidationError, match="Input should be 'fim'"):
        PlanRequest.model_validate({"budget": 8, "allocation": {"method": "best"}})
