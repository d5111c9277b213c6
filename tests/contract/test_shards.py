"""Where batches cannot be measured apart, a number of shards is refused, and says why."""

import pytest
from pydantic import ValidationError

from fimlora_contract.comparison_requests import ComparisonRequest
from fimlora_contract.evaluations import EvaluationRequest
from fimlora_contract.requests import CalibrationRequest

ROWS = {"source": "local", "name": "rows"}
LEAST = {"base_model": {"source": "local", "name": "tiny"}, "dataset": ROWS, "budget": 4}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"calibration": {"n_batches": "auto", "shards": 2}}, "measures in rounds"),
        ({"calibration": {"shards": 9}}, "there are 8 batches"),
        (
            {"calibration": {"shards": 2}, "adapter": {"init": "eva"}},
            "eva updates the directions of inputs",
        ),
        (
            {"calibration": {"shards": 2}, "allocation": {"method": "eva"}},
            "eva updates the directions of inputs",
        ),
        (
            {"calibration": {"shards": 2}, "allocation": {"method": "vila"}, "retain": ROWS},
            "rows to retain",
        ),
    ],
)
def test_a_number_of_shards_is_refused_where_batches_depend_on_others(changes, why):
    """With what is allowed instead; auto is not refused, and measures in one run."""
    with pytest.raises(ValidationError, match=why):
        CalibrationRequest.model_validate(LEAST | changes)
    if "there are" not in why:
        auto = {**changes["calibration"], "shards": "auto"}
        asked = CalibrationRequest.model_validate(LEAST | changes | {"calibration": auto})
        assert why in asked.why_not_in_shards


@pytest.mark.parametrize("shards", [0, 65, "two", 2.0, True, None])
def test_what_is_no_number_of_shards_is_refused(shards):
    """In one sentence, under the name of the field, and with all that is allowed."""
    with pytest.raises(ValidationError) as refused:
        CalibrationRequest.model_validate(
            LEAST | {"calibration": {"n_batches": 100, "shards": shards}}
        )

    (error,) = refused.value.errors()
    assert error["loc"] == ("calibration", "shards")
    assert "must be a whole number from 1 to 64, or auto" in error["msg"]


@pytest.mark.parametrize("request_type", [CalibrationRequest, ComparisonRequest])
@pytest.mark.parametrize("shards", [1, 8, "auto"])
def test_calibrations_and_comparisons_take_shards(request_type, shards):
    """As many as batches at most."""
    asked = request_type.model_validate(LEAST | {"calibration": {"shards": shards}})

    assert asked.calibration.shards == shards
    assert asked.why_not_in_shards is None


@pytest.mark.parametrize("shards", [2, "auto"])
def test_evaluations_share_their_runs_instead(shards):
    """They say so, also of auto."""
    with pytest.raises(ValidationError, match="workers share the training runs"):
        EvaluationRequest.model_validate(LEAST | {"calibration": {"shards": shards}})
