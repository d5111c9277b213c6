"""A wrong field is explained in words that need no knowledge of the validator."""

import json

import pytest


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"dataset": {"rows": [{}]}}, "dataset", "has no source; source must be one of"),
        ({"dataset": {"source": "s3cret"}}, "dataset", "source must be one of ['hub', "),
        ({"target_modules": "s3cret"}, "target_modules", "must be a list of names such as"),
        ({"target_modules": ["q", 1]}, "target_modules", "name 2 must be text; it is a number"),
        ({"base_model": "../s3cret"}, "base_model.id", "must be namespace/name, each starting"),
        (
            {"base_model": "local:/s3cret"},
            "base_model.name",
            "must be a plain name, not a path",
        ),
        (
            {"base_model": "a/b@s3 cret"},
            "base_model.revision",
            "must be a branch, tag or commit",
        ),
        ({"dataset": "ds_s3cret"}, "dataset.id", "must be the id of an upload"),
        (
            {"dataset": {"source": "inline", "rows": [3]}},
            "dataset.rows[0]",
            "must be an object",
        ),
        (
            {"allocation": {"rule": "s3cret"}},
            "allocation.rule",
            "allocation.rule is now allocation.method; its value proportional is now fim",
        ),
        ({"calibration": 3}, "calibration", "must be an object"),
        ({"calibration": {"nbatches": 3}}, "calibration.nbatches", "there is no such field"),
        ({"allocation": {"method": "s3cret"}}, "allocation.method", "must be 'fim', "),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)
def test_a_wrong_field_says_what_is_allowed(http, body, change, field, message):
    """One error per mistake, at the path the client wrote, without what was sent."""
    answer = http.post("/calibrate", json=body | change)

    problem = answer.json()
    assert answer.status_code == 422
    [error] = problem["errors"]
    assert error["field"] == f"body.{field}"
    assert error["message"].startswith(message)
    assert "s3" not in answer.text


def test_a_number_in_a_row_is_named_by_its_column(http, body):
    """The path ends at the column; what the validator tried inside it is left out."""
    rows = '{"source": "inline", "rows": [{"text": "a", "label": NaN}]}'
    content = json.dumps(body | {"dataset": 0}).replace('"dataset": 0', f'"dataset": {rows}')

    answer = http.post(
        "/calibrate", content=content, headers={"Content-Type": "application/json"}
    )

    [error] = answer.json()["errors"]
    assert error["field"] == "body.dataset.rows[0].label"


def test_a_header_or_query_has_its_form_explained(http, body):
    """Not by a regular expression."""
    for answer in (
        http.post("/calibrate", json=body, headers={"Idempotency-Key": "tab\there"}),
        http.get("/jobs?cursor=zzz"),
    ):
        [error] = answer.json()["errors"]
        assert error["message"].startswith("must be ")
        assert "^" not in answer.text


@pytest.mark.parametrize(
    ("change", "allowed"),
    [
        ({"modle": "x"}, ["base_model", "dataset", "budget"]),
        ({"calibration": {"nbatches": 3}}, ["n_batches", "batch_size"]),
        ({"budget": {"ranks": 3}}, ["rank", "parameters", "fraction", "bytes"]),
        ({"dataset": {"source": "local", "name": "a", "colums": {}}}, ["name", "columns"]),
        (
            {"dataset": {"source": "local", "name": "a", "columns": {"txt": "a"}}},
            ["text", "text_pair", "label"],
        ),
    ],
    ids=["body", "object", "short form", "union", "object in a union"],
)
def test_an_unknown_field_is_answered_with_those_there_are(http, body, change, allowed):
    """Of that very object, and of no other."""
    problem = http.post("/calibrate", json=body | change).json()

    message = next(e["message"] for e in problem["errors"] if e["type"] == "extra_forbidden")
    assert message.startswith("there is no such field; there are [")
    assert all(repr(name) in message for name in allowed)
    assert ("revision" in message) is False
    assert ("webhook" in message) is ("modle" in change)


@pytest.mark.parametrize(
    ("method", "path", "message"),
    [
        ("GET", "/rank-patterns/sha256:0", "must be sha256: and 64 lower-case hexadecimal"),
        (
            "GET",
            "/rank-patterns?model=a&dataset=b&budget=x",
            "is no budget; write 8 (mean rank)",
        ),
        ("GET", "/jobs/" + "a" * 65, "must have at most 64 characters"),
    ],
)
def test_a_wrong_parameter_says_its_form(http, method, path, message):
    """Not only that it is wrong."""
    [error] = http.request(method, path).json()["errors"]

    assert error["message"].startswith(message)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "/jobs?stage=writing",
            "there is no such parameter; there are ['limit', 'cursor', 'kind', 'status', 'label', 'model', 'tenant']",
        ),
        (
            "/rank-patterns?model=a&dataset=b&bugdet=8",
            (
                "there is no such parameter; there are ['model', 'dataset', 'budget', 'format', "
                "'steps', 'accumulation']; did you mean 'budget'?"
            ),
        ),
        ("/v1/models?x", "there is no such parameter; this route takes none"),
    ],
)
def test_an_unknown_query_parameter_is_refused(http, path, message):
    """Ignored, it would be answered as if it had not been asked."""
    answer = http.get(path)

    assert answer.status_code == 422
    [error] = answer.json()["errors"]
    assert error["message"] == message
    assert error["field"].startswith("query.")


def test_probes_may_carry_any_query(http):
    """Monitoring appends what it likes to defeat caches."""
    for path in ("/healthz?t=1", "/readyz?t=1", "/version?t=1"):
        assert http.get(path).status_code in {200, 503}


@pytest.mark.parametrize(
    ("dataset", "shape"),
    [
        ([{"text": "s3cret"}], '{"source": "inline", "rows": [{"text": "..."}, ...]}'),
        ([], '{"source": "inline", "rows": [{"text": "..."}, ...]}'),
        ({"rows": [{}]}, '{"source": "inline", "rows": [{"text": "..."}, ...]}'),
        ({"id": "s3/cret", "columns": {"text": "a"}}, '{"source": "hub", "id": "namespace/name"}'),
        ({"id": "ds_s3cret"}, '{"source": "upload", "id": "ds_..."}'),
        ({"name": "s3cret"}, '{"source": "local", "name": "a-registered-name"}'),
        ({"source": "s3cret", "rows": []}, '{"source": "inline", '),
        ({}, None),
        ({"columns": {}}, None),
        (3, None),
    ],
    ids=str,
)  # fmt: skip
def test_the_shape_of_a_dataset_is_named_by_what_was_given(http, body, dataset, shape):
    """One of them, and no value that was sent; each shape is one that is taken."""
    problem = http.post("/calibrate", json=body | {"dataset": dataset}).json()

    assert "source must be one of ['hub', " in problem["detail"]
    assert problem["detail"].count("; give {") == (shape is not None)
    assert (shape or "") in problem["detail"]
    assert "s3" not in json.dumps(problem)
    assert problem["next_step"].startswith("Give dataset as ")


def test_the_shape_of_a_model_is_named_too(http, body):
    """But no shape that a model cannot have."""
    by_id, by_rows = (
        http.post("/calibrate", json=body | {"base_model": model}).json()["detail"]
        for model in ({"id": "a/b"}, {"rows": []})
    )

    assert 'give {"source": "hub", "id": "namespace/name"}' in by_id
    assert "give {" not in by_rows


@pytest.mark.parametrize(
    ("change", "step"),
    [
        ({"budget": "many"}, "Give budget as a mean rank"),
        ({"base_model": 5}, "Give base_model as "),
        ({"allocation": {"r_min": "s3cret"}}, "Correct body.allocation.r_min as errors say."),
        ({"calibration": 3, "allocation": 3}, " Then correct the other 1 that errors name."),
        ({"target_modules": ["nowhere"]}, "Correct body.target_modules[0] as errors say."),
    ],
    ids=str,
)
def test_the_next_step_is_that_of_the_first_field(http, body, change, step):
    """Of the validator and of what is looked up alike."""
    problem = http.post("/calibrate", json=body | change).json()

    assert problem["code"] == "validation_failed"
    assert step in problem["next_step"]
    assert "s3cret" not in json.dumps(problem)
