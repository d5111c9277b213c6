"""How the service describes itself: names of operations, and what its errors look like."""

from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from fimlora_contract.problems import Problem
from fimlora_service import errors
from fimlora_service.http.dependencies import problems

# What the server and the middleware around all routes refuse.
ANYWHERE = (
    errors.MalformedRequest,
    errors.HostNotAllowed,
    errors.OriginNotAllowed,
    errors.Overloaded,
)
WITH_BODY = (errors.RequestTimeout, errors.PayloadTooLarge)
SCHEME = "api_key"
SCHEMES = {
    SCHEME: {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key, from `fimlora keys create`; none is asked for before the "
        "first one was made.",
    }
}


def operation_id(route: APIRoute) -> str:
    """The handler's name names the operation."""
    return route.name


def document_surroundings(operation: dict[str, Any]) -> None:
    """Add to an operation what may be answered before it is asked."""
    refusals = ANYWHERE + (WITH_BODY if "requestBody" in operation else ())
    for status, refusal in problems(*refusals).items():
        known = operation["responses"].setdefault(str(status), refusal)
        if refusal["description"] not in known["description"]:
            known["description"] = f"{known['description']} {refusal['description']}"
        for kind, content in refusal["content"].items():
            known.setdefault("content", {}).setdefault(kind, content)


def document_problems(app: FastAPI) -> None:
    """Put problem documents and keys into the API reference, in place of the framework's own."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        schema = generate()
        schemas = schema["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        schema["components"]["securitySchemes"] = SCHEMES
        schemas["Problem"] = Problem.model_json_schema()
        for methods in schema["paths"].values():
            for operation in methods.values():
                document_surroundings(operation)
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
