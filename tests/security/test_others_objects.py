"""Broken object level authorisation (OWASP API1): another tenant's things are not there.

Every route with an id in its path, and every body that names one, asked by a tenant who may do
everything, of things of another tenant; and for comparison of things that never were.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from redis import Redis

from fimlora_jobs.store import JobStore
from fimlora_service.app import create_app
from fimlora_service.settings import Settings
from security.routes import ABSENT, ROUTES, Route
from support.adapter_files import TAR, as_tar, files_of
from support.keys import ADMIN_KEY, Visitor, make_key
from support.results import make_result
from support.service import ROWS, as_jsonl
from support.testclient import TestClient

EVERYTHING = ["submit", "read", "cancel", "admin"]
PIN = "/rank-patterns/mine/kept"
JSONL = {"Content-Type": "application/jsonl"}
WITH_IDS = [route for route in ROUTES if route.parameters]


@dataclass(frozen=True)
class Things:
    """What one tenant has.

    Attributes:
        ids: By the first part of a path, or the name of a parameter.
        other: Somebody of another tenant.
        same: Somebody of the tenant.
    """

    ids: dict[str, str]
    other: Visitor
    same: Visitor


@pytest.fixture(scope="module")
def things(settings: Settings, valkey_server: str) -> Iterator[Things]:
    keyed = settings.model_copy(update={"admin_key": Settings(admin_key=ADMIN_KEY).admin_key})
    app = create_app(keyed)
    with (
        TestClient(app, raise_server_exceptions=False) as http,
        Redis.from_url(valkey_server) as redis,
    ):
        other = make_key(http, tenant="other", scopes=EVERYTHING)
        same = make_key(http, tenant="owner", scopes=EVERYTHING)
        yield Things(make_things(same, JobStore(redis), keyed), other, same)
        redis.flushall()


def make_things(owner: Visitor, store: JobStore, settings: Settings) -> dict[str, str]:
    """One of each, made through the API by its owner."""
    dataset = owner("POST", "/datasets", content=as_jsonl(ROWS), headers=JSONL).json()["id"]
    adapter = owner("POST", "/adapters", content=as_tar(files_of()), headers=TAR).json()["id"]
    body = {"base_model": "local:tiny", "dataset": dataset, "budget": 8}
    job = owner("POST", "/calibrate", json=body).json()["id"]
    store.start(job, 1, worker="test")
    result = make_result(settings.data_dir)
    store.succeed(job, 1, result)
    rows = [{"text": f"text {n}", "label": n % 2} for n in range(80)]
    asked = body | {"dataset": {"source": "inline", "rows": rows}}
    evaluation = owner("POST", "/evaluations", json=asked).json()["id"]
    pinned = owner("PUT", PIN, json={"job_id": job})
    assert pinned.is_success, pinned.text
    return {
        "jobs": job, "other": job, "evaluations": evaluation, "datasets": dataset,
        "adapters": adapter, "digest": result["digest"], "keys": owner.id,
        "name": "adapter_config.json", "pin": "mine", "tag": "kept",
    }  # fmt: skip


def url_of(route: Route, ids: dict[str, str]) -> str:
    """A route's path on some things."""
    values = {
        name: ids.get(route.noun if name == "id" else name, "x") for name in route.parameters
    }
    if route.noun == "rank-patterns" and "name" in values:
        values["name"] = ids["pin"]
    return route.path.format(**values)


def told(answer: Any, ids: dict[str, str]) -> tuple[int, str]:
    """Status and text of an answer, without what names the thing or the request."""
    text = answer.text
    for value in sorted(ids.values(), key=len, reverse=True):
        text = text.replace(value, "THING")
    return answer.status_code, re.sub(r'"request_id": "[^"]*"', "", text)


def absent_of(ids: dict[str, str]) -> dict[str, str]:
    """Ids that look like those of things, and are of nothing."""
    return ids | {
        name: value for name, value in ABSENT.items() if name in ids
    } | {"pin": "none", "tag": "lost"}  # fmt: skip


@pytest.mark.parametrize("route", WITH_IDS, ids=str)
@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_what_is_another_tenants_is_missing(things: Things, route: Route, prefix: str):
    """With the very answer that is given where nothing ever was, whatever may be done to it."""
    if route.method == "PUT":
        return  # a name of one's own: see test_a_pin_is_each_tenants_own
    absent = absent_of(things.ids)
    body = {"json": route.body} if route.body is not None else {}
    found = things.other(route.method, prefix + url_of(route, things.ids), **body)
    nothing = things.other(route.method, prefix + url_of(route, absent), **body)

    assert found.status_code in {404, 410}, found.text
    assert told(found, things.ids | {"pin": "mine"}) == told(nothing, absent)


def test_a_pin_is_each_tenants_own(things: Things):
    """A name stands for one thing with each; nobody sets another's."""
    refused = things.other("PUT", PIN, json={"job_id": things.ids["jobs"]})
    unknown = things.other("PUT", PIN, json={"job_id": ABSENT["jobs"]})
    by_digest = things.other("PUT", PIN, json={"digest": things.ids["digest"]})

    assert (refused.status_code, unknown.status_code, by_digest.status_code) == (404, 404, 404)
    assert things.same("GET", PIN).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/calibrate", {"dataset": "{datasets}"}),
        ("/estimate", {"dataset": "{datasets}"}),
        ("/compare", {"dataset": "{datasets}"}),
        ("/evaluations", {"dataset": "{datasets}"}),
        ("/evaluations", {"eval_dataset": "{datasets}"}),
        ("/calibrate", {"retain": "{datasets}", "allocation": {"method": "vila"}}),
        ("/calibrate", {"calibration": {"adapter": "{adapters}"}}),
        ("/evaluations", {"plans": {"theirs": "{jobs}"}}),
        ("/evaluations", {"plans": {"theirs": "{digest}"}}),
        ("/evaluations", {"plans": {"theirs": "mine/kept"}}),
    ],
    ids=str,
)
def test_no_body_reaches_another_tenants_thing(things: Things, path: str, body: dict[str, Any]):
    """By a field that names it: as if it was not there."""
    rows = [{"text": f"text {n}", "label": n % 2} for n in range(80)]
    base = {
        "base_model": "local:tiny",
        "dataset": {"source": "inline", "rows": rows},
        "budget": 8,
    }
    answer = things.other("POST", path, json=base | filled(body, things.ids))

    assert answer.status_code in {404, 410, 422, 424}, answer.text
    assert answer.json()["code"] in {
        "dataset_not_found", "adapter_not_found", "job_not_found", "no_pattern", "result_expired",
    }  # fmt: skip


def filled(value: Any, ids: dict[str, str]) -> Any:
    """A body with the ids in it."""
    if isinstance(value, dict):
        return {name: filled(inner, ids) for name, inner in value.items()}
    return value.format(**ids) if isinstance(value, str) else value


def test_no_list_has_another_tenants_things(things: Things):
    """Lists, look-ups and figures by tenant; the owner sees all of it."""
    seen, own = (
        "".join(
            who("GET", route.path, params=LOOKED_UP.get(route.path, {})).text
            for route in ROUTES
            if route.method == "GET" and not route.parameters and route.path != "/metrics"
        )
        for who in (things.other, things.same)
    )

    for name in ("jobs", "evaluations", "datasets", "adapters", "keys"):
        assert things.ids[name] in own, name
        assert things.ids[name] not in seen, name


LOOKED_UP = {"/rank-patterns": {"model": "local:tiny", "dataset": "local:x"}}


def test_the_owner_reaches_all_of_it(things: Things):
    """What is refused above is not refused to everybody."""
    statuses = {
        str(route): things.same("GET", url_of(route, things.ids)).status_code
        for route in WITH_IDS
        if route.method == "GET"
        and not {"/diff/", "/events"} & set(re.findall("/[a-z]+/?", route.path))
    }

    assert set(statuses.values()) <= {200, 409}, statuses
