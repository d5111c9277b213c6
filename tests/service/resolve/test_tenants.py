"""What not everybody may read on the hub is found only with the token it was read with."""

from contextlib import ExitStack

import pytest
from pydantic import SecretStr

from fimlora_jobs.catalogue import Catalogue
from fimlora_service.app import create_app
from fimlora_service.resolve.tenants import tenant_of
from support.results import make_result
from support.service import make_model
from support.testclient import TestClient

TOKENS = {"alice": "hf_a", "bob": "hf_b", "nobody": None}


@pytest.fixture
def services(settings, hub):
    """Services over one store, each with a token of its own."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(
                TestClient(
                    create_app(
                        settings.model_copy(
                            update={
                                "hub_endpoint": hub.url,
                                "hub_token": token and SecretStr(token),
                            }
                        )
                    )
                )
            )
            for name, token in TOKENS.items()
        }


@pytest.fixture
def finish(store, data_dir):
    """Play a worker: a result, remembered and filed by its inputs."""

    def run(job_id):
        store.start(job_id, 1, worker="test")
        record = store.get(job_id)
        store.succeed(job_id, 1, make_result(data_dir))
        store.remember_result(record.fields["request_digest"], job_id)
        store.remember_statistics(record.fields["statistics_digest"], job_id)
        Catalogue(store).file(record)

    return run


@pytest.fixture
def asked(hub, tmp_path, data_dir):
    """A request for a model on the hub, by a name that look-ups can use."""
    rows = data_dir / "datasets" / "rows.jsonl"
    rows.parent.mkdir(exist_ok=True)
    rows.write_text('{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n')
    hub.add("org/model", make_model(tmp_path / "m"))
    return {"base_model": "org/model", "dataset": "local:rows.jsonl", "budget": 8}


LOOKUP = {"model": "org/model", "dataset": "local:rows.jsonl"}


@pytest.mark.parametrize("source", ["private", "public"])
def test_only_who_may_read_a_source_finds_its_results(source, services, finish, asked, hub):
    """Another token neither gets nor shares a private result; a public one is everybody's."""
    hub.repositories["model", "org/model"].private = source == "private"
    first = services["alice"].post("/calibrate", json=asked).json()
    while_open = services["bob"].post("/calibrate", json=asked).json()
    finish(first["id"])

    again = services["alice"].post("/calibrate", json=asked).json()
    others = services["bob"].post("/calibrate", json=asked).json()
    found = {name: http.get("/rank-patterns", params=LOOKUP) for name, http in services.items()}

    is_public = source == "public"
    assert (while_open["id"] == first["id"]) is is_public
    assert again["cached"] is True
    assert others["cached"] is is_public
    assert {name: answer.status_code for name, answer in found.items()} == {
        "alice": 200,
        "bob": 200 if is_public else 404,
        "nobody": 200 if is_public else 404,
    }


@pytest.mark.parametrize("source", ["private", "public"])
def test_only_who_may_read_held_out_rows_finds_what_was_found(source, services, asked, hub):
    """An evaluation tells of the rows that it is tested on, too; it is filed as theirs."""
    held_out = hub.add("org/data", {"train.jsonl": b"{}"}, kind="dataset")
    held_out.private = source == "private"
    body = asked | {"eval_dataset": "org/data", "batch_size": 2}

    first, again, other = (
        services[name].post("/evaluations", json=body).json()
        for name in ("alice", "alice", "bob")
    )

    assert again["id"] == first["id"]
    assert (other["id"] == first["id"]) is (source == "public")


def test_statistics_of_a_private_source_are_not_shared(services, finish, asked, hub):
    """Another budget is planned from one's own measurement only."""
    hub.repositories["model", "org/model"].private = True
    finish(services["alice"].post("/calibrate", json=asked).json()["id"])

    plans = {
        name: services[name].post("/calibrate", json=asked | {"budget": 9}).json()
        for name in ("alice", "bob")
    }

    assert plans["alice"]["statistics_from"] is not None
    assert plans["bob"]["statistics_from"] is None


def test_a_retry_belongs_to_whom_the_job_belonged(services, finish, asked, hub, store):
    """A new job for an old request is filed where the old one would have been."""
    hub.repositories["model", "org/model"].private = True
    first = services["alice"].post("/calibrate", json=asked).json()["id"]
    store.request_cancel(first)

    finish(services["bob"].post(f"/jobs/{first}/retry").json()["id"])

    assert services["alice"].get("/rank-patterns", params=LOOKUP).status_code == 200
    assert services["bob"].get("/rank-patterns", params=LOOKUP).status_code == 404


def test_no_token_is_written_anywhere(services, asked, hub, redis_client):
    """Not in a record, not in a key; what stands for it differs from token to token."""
    hub.repositories["model", "org/model"].private = True
    job = services["alice"].post("/calibrate", json=asked)

    stored = [redis_client.dump(key) for key in redis_client.keys("*")]
    assert not [value for value in (*redis_client.keys("*"), *stored) if b"hf_a" in value]
    assert tenant_of("hf_a") not in job.text
    assert len({tenant_of(token) for token in TOKENS.values()}) == 3
