"""The API's description of itself."""

from collections.abc import Iterator
from typing import Any

import pytest

from fimlora_contract.requests import CalibrationRequest
from fimlora_service.calibrations.openapi_examples import CALIBRATION_EXAMPLES


@pytest.fixture
def schema(app) -> dict[str, Any]:
    return app.openapi()


def references(node: Any) -> Iterator[str]:
    """Every reference in a schema."""
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def operations(schema) -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{method} {path}", operation)
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    ]


def test_every_reference_leads_somewhere(schema):
    """Generators of clients stop at a reference that does not."""
    known = {f"#/components/schemas/{name}" for name in schema["components"]["schemas"]}

    assert set(references(schema)) <= known


def test_every_error_is_described_as_a_problem(schema):
    """Of every operation, except readiness, which names the failed dependency instead."""
    for name, operation in operations(schema):
        for status, response in operation["responses"].items():
            if status >= "400" and name != "get /readyz":
                assert list(response["content"]) == ["application/problem+json"], name


def test_the_short_forms_are_described(schema):
    """A model, a dataset and a budget may be a string, a string and an integer."""
    request = schema["components"]["schemas"]["CalibrationRequest"]["properties"]

    for field, type_ in [
        ("base_model", "string"),
        ("dataset", "string"),
        ("budget", "integer"),
    ]:
        assert {"type": type_} in request[field]["anyOf"]


@pytest.mark.parametrize("name", CALIBRATION_EXAMPLES)
def test_an_example_is_a_request(name):
    """What the reference shows can be sent."""
    example = CALIBRATION_EXAMPLES[name]["value"]

    assert CalibrationRequest.model_validate(example).model_fields_set == set(example)


def test_operations_have_names_and_sentences(schema):
    """Each once, from the handler."""
    names = [operation["operationId"] for _, operation in operations(schema)]

    assert len(set(names)) == len(names)
    assert all(operation["description"] for _, operation in operations(schema))
