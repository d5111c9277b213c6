"""How the service describes itself: names of operations, and what its errors look like."""

from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from fimlora_contract.problems import Problem

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
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
