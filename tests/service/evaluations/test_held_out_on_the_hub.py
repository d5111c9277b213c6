"""Held-out rows on the hub, against the stand-in hub."""

import pytest
from fastapi import FastAPI

from fimlora_service.app import create_app
from fimlora_service.settings import Settings
from support.hub import Hub


@pytest.fixture
def app(settings: Settings, hub: Hub) -> FastAPI:
    return create_app(settings.model_copy(update={"hub_endpoint": hub.url}))


@pytest.mark.parametrize(
    ("held_out", "n_bytes"),
    [({"eval_dataset": "org/test"}, 79), ({"eval_split": "test"}, 70), ({}, 70)],
    ids=["dataset", "split", "share"],
)
def test_an_estimate_has_the_files_that_are_held_out(http, body, hub, held_out, n_bytes):
    """Those of another repository; two splits of one are its files once."""
    hub.add("org/train", {"train.jsonl": b"1" * 70}, kind="dataset")
    hub.add("org/test", {"test.jsonl": b"1" * 9}, kind="dataset")
    asked = body | {"dataset": "org/train", "validate_only": True} | held_out

    answer = http.post("/evaluations", json=asked)

    assert answer.status_code == 200, answer.text
    assert answer.json()["fetch"]["dataset_bytes"] == n_bytes
