"""What the operator allows, on every route that names a model or a dataset."""

import json
from typing import Any

import pytest

from fimlora_service.app import create_app
from support.adapter_files import TAR, as_tar, config_of, files_of
from support.service import ROWS, as_jsonl
from support.testclient import TestClient

ROUTES = ["/calibrate", "/estimate", "/compare", "/evaluations"]
OWN = {"source": "inline", "rows": [{"text": f"t {n}", "label": n % 2} for n in range(80)]}


@pytest.fixture
def limited(settings, hub):
    """A service of one model, and of rows that come with a request."""
    more = settings.model_copy(
        update={
            "allowed_models": "org/*, local:tiny",
            "allowed_datasets": "inline",
            "hub_endpoint": hub.url,
        }
    )
    with TestClient(create_app(more), raise_server_exceptions=False) as http:
        yield http


def refusal(answer) -> tuple[int, str, str]:
    problem = answer.json()
    return answer.status_code, problem["code"], problem["detail"]


@pytest.mark.parametrize("model", ["evil/model", "local:other", "other", "ORG/model"])
def test_another_model_is_refused(limited, hub, model):
    """On every route, with what is allowed, and before the hub is asked."""
    for route in ROUTES:
        body = {"base_model": model, "dataset": OWN, "budget": 8}
        status, code, detail = refusal(limited.post(route, json=body))

        assert (status, code) == (403, "model_not_allowed"), route
        assert "allowed are org/*, local:tiny" in detail
    assert hub.requests == []


@pytest.mark.parametrize(
    "dataset", ["evil/rows", "rows", {"source": "upload", "id": "ds_" + "0" * 32}], ids=str
)
def test_another_dataset_is_refused(limited, hub, dataset):
    """As the one that is measured, the one to retain, and the one held out."""
    body: dict[str, Any] = {"base_model": "local:tiny", "dataset": OWN, "budget": 8}
    asked = [(route, body | {"dataset": dataset}) for route in ROUTES]
    asked.append(("/evaluations", body | {"eval_dataset": dataset}))
    asked.append(("/calibrate", body | {"retain": dataset, "allocation": {"method": "vila"}}))
    for route, given in asked:
        status, code, detail = refusal(limited.post(route, json=given))

        assert (status, code) == (403, "source_not_allowed"), route
        assert "allowed are inline" in detail
    assert hub.requests == []


@pytest.mark.parametrize("route", ["allocate", "sweep", "compare"])
def test_nothing_new_is_made_of_what_is_not_allowed_any_more(http, limited, store, route):
    """Plans of a job whose model the operator has taken off the list since, or its rows."""
    asked = {"base_model": "tiny", "dataset": OWN, "budget": 8}
    job_id = http.post("/calibrate", json=asked).json()["id"]
    other = {"source": "local", "name": "other"}
    for field, code in (("base_model", "model_not_allowed"), ("dataset", "source_not_allowed")):
        request = store.get(job_id).shown_request
        key = store.key("job", job_id)
        store.redis.hset(key, "request", json.dumps(request | {field: other}))
        told = refusal(limited.post(f"/jobs/{job_id}/{route}", json={"budget": 8}))
        store.redis.hset(key, "request", json.dumps(request))

        assert told[:2] == (403, code)
    allowed = limited.post(f"/jobs/{job_id}/{route}", json={"budget": 8})
    assert allowed.json()["code"] == "job_not_finished"


def test_what_is_allowed_goes_on(limited):
    """To be judged by what it is."""
    body = {"base_model": "local:tiny", "dataset": OWN, "budget": 8}

    assert limited.post("/calibrate", json=body).status_code == 202
    assert refusal(limited.post("/calibrate", json=body | {"base_model": "org/none"}))[0] == 424


def test_an_upload_that_could_never_be_used_is_refused_at_once(limited, data_dir):
    """And nothing of it is kept."""
    kind = {"Content-Type": "application/jsonl"}
    answer = limited.post("/datasets", content=as_jsonl(ROWS), headers=kind)

    assert refusal(answer)[:2] == (403, "source_not_allowed")
    assert list((data_dir / "uploads").iterdir()) == []


@pytest.mark.parametrize(
    ("base", "status"), [("evil/model", 403), ("org/model", 201), ("/home/me/model", 201)]
)
def test_an_adapter_of_another_model_is_refused(limited, base, status):
    """By the name in its config; a path names no model of the hub."""
    archive = as_tar(files_of(config_of(base_model_name_or_path=base)))

    assert limited.post("/adapters", content=archive, headers=TAR).status_code == status


def test_a_retry_needs_what_it_uses_to_be_allowed_still(http, limited, job_id, store):
    """The operator may have changed the list since."""
    http.post(f"/jobs/{job_id}/cancel")
    strict = {"source": "local", "name": "other"}
    record = store.get(job_id).request | {"base_model": strict}
    other = store.new_id()
    store.create(other, request=record, resolved={}, digest="d")
    http.post(f"/jobs/{other}/cancel")

    assert limited.post(f"/jobs/{job_id}/retry").status_code == 202
    assert refusal(limited.post(f"/jobs/{other}/retry"))[:2] == (403, "model_not_allowed")
