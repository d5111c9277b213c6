"""Hub references, against the stand-in hub."""

import json
import re
from pathlib import Path

import pytest
from fastapi import FastAPI

from fimlora_service.app import create_app
from fimlora_service.settings import Settings
from support.hub import Hub
from support.service import CONFIG, make_model


@pytest.fixture
def settings(settings: Settings, hub: Hub) -> Settings:
    return settings.model_copy(update={"hub_endpoint": hub.url})


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    return create_app(settings)


@pytest.fixture
def model(hub: Hub, tmp_path: Path):
    """A sound model on the hub."""
    return hub.add("org/model", make_model(tmp_path / "m"), revisions=("main", "v1"))


@pytest.fixture
def from_hub(body):
    return body | {"base_model": "org/model@v1"}


def test_a_model_is_pinned_to_its_commit(http, from_hub, model):
    """The record names the commit, so the worker loads what was accepted."""
    answer = http.post("/calibrate", json=from_hub)

    resolved = answer.json()["resolved"]["base_model"]
    assert answer.status_code == 202, answer.text
    assert resolved["revision"] == model.commit
    assert (resolved["model_type"], resolved["architecture"]) == ("gpt2", "GPT2Model")


def test_of_weights_only_the_heads_are_read_once(http, from_hub, model, hub):
    """However large they are; what a commit holds never changes."""
    http.post("/calibrate", json=from_hub)
    n_asked = len(hub.requests)
    http.post("/calibrate", json=from_hub | {"budget": 4})

    assert sorted(hub.whole) == ["config.json", "tokenizer.json"]
    assert [line for line in hub.requests[:n_asked] if "safetensors" in line]
    assert not [line for line in hub.requests[n_asked:] if "safetensors" in line]


def test_another_commit_is_another_model(http, from_hub, model, hub, succeed):
    """The cache follows the content of a branch, not its name."""
    succeed(http.post("/calibrate", json=from_hub).json()["id"])
    assert http.post("/calibrate", json=from_hub).status_code == 200

    model.files["tokenizer.json"] += b" "

    assert http.post("/calibrate", json=from_hub).status_code == 202


@pytest.mark.parametrize(
    ("reference", "code"),
    [
        ("org/other", "model_not_found"),
        ("org/model@v9", "model_not_found"),
        ({"source": "hub", "id": "a--b/..c"}, "validation_failed"),
        ({"source": "hub", "id": "org/mod--el"}, "model_not_found"),
    ],
    ids=str,
)
def test_a_model_that_is_not_there_is_refused(http, body, model, reference, code):
    """Repository and revision are told in the sentence."""
    problem = http.post("/calibrate", json=body | {"base_model": reference}).json()

    assert problem["code"] == code


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({"config.json": json.dumps(CONFIG), "pytorch_model.bin": b"x"}, "unsafe_weights"),
        ({"config.json": json.dumps(CONFIG), "a/b.safetensors": b"x"}, "unsafe_weights"),
        ({"model.safetensors": b"x"}, "unsupported_architecture"),
        ({"config.json": "{", "model.safetensors": b"x"}, "unsupported_architecture"),
        (
            {
                "config.json": '{"model_type": "x", "auto_map": {"AutoModel": "x.Y"}}',
                "model.safetensors": b"x",
            },
            "unsupported_architecture",
        ),
    ],
    ids=["pickle", "subfolder", "no-config", "broken-config", "own-code"],
)
def test_a_model_that_cannot_be_used_is_refused(http, from_hub, hub, files, code):
    """Before anything is queued or downloaded."""
    hub.add("org/model", files, revisions=("v1",))

    problem = http.post("/calibrate", json=from_hub).json()

    assert problem["code"] == code
    assert "org/model" in problem["detail"]


def test_a_gated_model_is_told_apart(http, from_hub, model):
    """The client learns that a token would help."""
    model.gated = True

    answer = http.post("/calibrate", json=from_hub)

    assert (answer.status_code, answer.json()["code"]) == (424, "model_gated")


def test_named_targets_are_checked_against_remote_headers(http, from_hub, model):
    """As for local models, from the heads of the weight files."""
    right = http.post("/calibrate", json=from_hub | {"target_modules": ["query"]})
    wrong = http.post("/calibrate", json=from_hub | {"target_modules": ["qurey"]})

    assert right.status_code == 202, right.text
    assert wrong.json()["errors"][0]["field"] == "body.target_modules[0]"


def test_a_dataset_is_pinned_to_its_commit(http, body, hub):
    """Its columns are known only when the worker has loaded it."""
    data = hub.add("org/data", {"train.jsonl": b"{}"}, kind="dataset")

    job = http.post("/calibrate", json=body | {"dataset": "org/data"}).json()

    resolved = job["resolved"]["dataset"]
    assert (resolved["revision"], resolved["fields"]) == (data.commit, None)


@pytest.mark.parametrize("reference", ["org/other", "org/data@v9"])
def test_a_dataset_that_is_not_there_is_refused(http, body, hub, reference):
    """424, named."""
    hub.add("org/data", {"train.jsonl": b"{}"}, kind="dataset")

    answer = http.post("/calibrate", json=body | {"dataset": reference})

    assert (answer.status_code, answer.json()["code"]) == (424, "dataset_unreachable")


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"data.py": "", "README.md": "# data"}, r"brings a loading script \(data\.py\)"),
        ({"data.py": "", "train.jsonl": "{}"}, r"brings a loading script \(data\.py\)"),
        ({"README.md": "# data", "other.py": ""}, r"no data files; it has \['README\.md', 'o"),
    ],
    ids=["script", "script-beside-data", "no-data"],
)
def test_a_dataset_that_no_files_give_is_refused(http, body, hub, files, reason):
    """424 before anything is queued: code of a dataset is never run."""
    hub.add("org/data", files, kind="dataset")

    answer = http.post("/calibrate", json=body | {"dataset": "org/data"})

    assert (answer.status_code, answer.json()["code"]) == (424, "dataset_unreachable")
    assert re.search(reason, answer.json()["detail"])


def test_a_hub_with_trouble_is_not_the_client_s_fault(http, from_hub, model, hub):
    """503 with Retry-After, for a fault of the hub as for no hub at all."""
    hub.broken = True

    answer = http.post("/calibrate", json=from_hub)

    assert (answer.status_code, answer.json()["code"]) == (503, "hub_unreachable")
    assert int(answer.headers["Retry-After"]) > 0


class TestWithoutHub:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"hub_endpoint": "http://127.0.0.1:9"})

    @pytest.mark.parametrize("change", [{"base_model": "a/b"}, {"dataset": "a/b"}], ids=str)
    def test_an_unreachable_hub_is_told(self, http, body, change):
        """503; a key used for it stays free."""
        headers = {"Idempotency-Key": "k"}

        answer = http.post("/calibrate", json=body | change, headers=headers)

        assert (answer.status_code, answer.json()["code"]) == (503, "hub_unreachable")
        assert http.post("/calibrate", json=body, headers=headers).status_code == 202
