"""Broken object property level authorisation (OWASP API3): no field but those that are described."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from security.routes import DOCUMENT, JSON, ROUTES, Route

# What a caller would like to set of himself, of a job, or of where a thing belongs.
WANTED = {
    "owner": "somebody", "tenant": "somebody", "scopes": ["admin"], "is_admin": True, "id": "job_x",
    "status": "succeeded", "attempt": 9, "digest": "sha256:0", "trust_remote_code": True,
    "__proto__": {}, "data_dir": "/", "path": "/etc/passwd", "url": "http://169.254.169.254/",
}  # fmt: skip
REFERENCES = {("base_model", "id"), ("dataset", "id")}  # of the hub
WITH_BODY = [r for r in ROUTES if JSON in r.media_types]


def objects_in(value: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where a body has objects; what is a map by design is left out."""
    if isinstance(value, dict):
        yield at
        for name, inner in value.items():
            if name not in {"metadata", "rows", "plans", "rank_menu", "groups", "per_type"}:
                yield from objects_in(inner, (*at, name))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from objects_in(inner, (*at, number))


def bodies_of(route: Route) -> list[Any]:
    """Every example of a route's body."""
    examples = route.media_types[JSON].get("examples", {})
    return [example["value"] for example in examples.values()] or [route.body]


@pytest.mark.parametrize("route", WITH_BODY, ids=str)
def test_a_field_that_is_not_described_is_refused(http, route: Route):
    """In the body and in every object of it, by its name; nothing is ignored in silence."""
    for body in bodies_of(route):
        for at in objects_in(body):
            for name in WANTED:
                if not takes(route, at, name):
                    answer = http.request(
                        route.method, route.url(), json=changed(body, at, name)
                    )
                    fields = {error["field"] for error in answer.json().get("errors", [])}

                    assert answer.status_code == 422, (at, name, answer.text)
                    assert any(field.endswith(name) for field in fields), (at, name, fields)


def changed(body: Any, at: tuple[str | int, ...], name: str) -> Any:
    """A body with one more field somewhere."""
    more = copy.deepcopy(body)
    place = more
    for step in at:
        place = place[step]
    place[name] = WANTED[name]
    return more


def takes(route: Route, at: tuple[str | int, ...], name: str) -> bool:
    """Whether there is a field of that name by right."""
    return name in route.fields if not at else (at[-1], name) in REFERENCES


@pytest.mark.parametrize("route", WITH_BODY, ids=str)
def test_a_body_says_which_fields_there_are(route: Route):
    """The document refuses others, too, so that a generated client cannot send them."""
    name = route.media_types[JSON]["schema"]["$ref"].rpartition("/")[2]

    assert DOCUMENT["components"]["schemas"][name]["additionalProperties"] is False
