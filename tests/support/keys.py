"""A service with keys: who comes with which, and every route as the service describes it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from support.testclient import TestClient

ADMIN_KEY = "an-admin-key-of-the-operator"
OPERATOR = {"Authorization": f"Bearer {ADMIN_KEY}"}
OPEN_ROUTES = {"/healthz", "/readyz", "/version"}


@dataclass(frozen=True)
class Visitor:
    """Somebody with a key."""

    http: TestClient
    id: str
    key: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def __call__(self, method: str, path: str, **options: Any) -> Any:
        headers = self.headers | options.pop("headers", {})
        return self.http.request(method, path, headers=headers, **options)


def make_key(http: TestClient, **body: Any) -> Visitor:
    """A key that the operator makes."""
    answer = http.post("/keys", json={"name": "test"} | body, headers=OPERATOR)
    assert answer.status_code == 201, answer.text
    return Visitor(http, answer.json()["id"], answer.json()["key"])


def routes(schema: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Method, path and description of everything that the service answers."""
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation
