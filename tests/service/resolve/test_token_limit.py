"""What a request may send through a model is bounded by the operator, on every route."""

import pytest

from fimlora_service.app import create_app
from support.testclient import TestClient

MOST = 64 * 64 * 16
ROWS = [{"text": f"text {n}", "label": n % 2} for n in range(80)]
AT_MOST = {"n_batches": 64, "batch_size": 64, "max_length": 16}


@pytest.fixture
def bounded(settings):
    """A service that takes requests of so many tokens."""
    few = settings.model_copy(update={"max_calibration_tokens": MOST})
    with TestClient(create_app(few), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def body(body):
    return body | {"dataset": {"source": "inline", "rows": ROWS}}


def refusal(answer) -> dict:
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    return answer.json()


@pytest.mark.parametrize("path", ["/calibrate", "/estimate", "/compare", "/evaluations"])
def test_as_many_tokens_as_allowed_are_taken_and_one_batch_more_is_not(bounded, body, path):
    """Whichever route they come by, before anything is put on record."""
    allowed = body | {"calibration": AT_MOST}
    more = body | {"calibration": AT_MOST | {"n_batches": 65}}

    refused = refusal(bounded.post(path, json=more))

    assert "n_batches=65 x batch_size=64 x max_length=16 are 66,560 tokens" in refused["detail"]
    assert "at most 65,536" in refused["detail"]
    assert [error["field"] for error in refused["errors"]] == ["calibration"]
    assert bounded.get("/jobs").json()["data"] == []
    assert bounded.post(path, json=allowed).status_code in {200, 202}


@pytest.mark.parametrize(
    ("change", "field", "named"),
    [
        (
            {"calibration": AT_MOST | {"n_batches": "auto", "max_batches": 65}},
            "calibration",
            "max_batches=65 x batch_size=64 x max_length=16",
        ),
        (
            {"calibration": {"head_rows": 4097, "max_length": 16}},
            "calibration.head_rows",
            "head_rows=4097 x max_length=16",
        ),
    ],
)
def test_rounds_count_with_their_cap_and_a_head_with_its_rows(
    bounded, body, change, field, named
):
    """What may be measured counts, not what will be."""
    refused = refusal(bounded.post("/calibrate", json=body | change))

    assert refused["detail"].startswith(named)
    assert refused["errors"][0]["field"] == field


@pytest.mark.parametrize(
    ("change", "field", "named"),
    [
        (
            {"steps": 65, "batch_size": 64, "max_length": 16},
            "steps",
            "steps=65 x batch_size=64",
        ),
        ({"eval_rows": 8193, "max_length": 8}, "eval_rows", "eval_rows=8193 x max_length=8"),
    ],
)
def test_an_evaluation_counts_what_a_run_trains_and_tests_on(
    bounded, body, change, field, named
):
    """Beside what its plans are measured on."""
    small = {"calibration": {"max_length": 16}}

    refused = refusal(bounded.post("/evaluations", json=body | small | change))

    assert refused["detail"].startswith(named)
    assert refused["errors"][0]["field"] == field


def test_an_operator_may_lift_the_limit(settings, body):
    """Zero is no limit."""
    most = {"calibration": {"n_batches": 4096, "batch_size": 1024, "max_length": 131_072}}
    unbounded = settings.model_copy(update={"max_calibration_tokens": 0})

    with TestClient(create_app(unbounded), raise_server_exceptions=False) as client:
        assert client.post("/estimate", json=body | most).status_code == 200
