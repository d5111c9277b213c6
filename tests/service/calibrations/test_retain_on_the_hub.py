"""Rows to retain on the hub, against the stand-in hub."""

import pytest
from fastapi import FastAPI

from fimlora_service.app import create_app
from fimlora_service.settings import Settings
from support.hub import Hub


@pytest.fixture
def app(settings: Settings, hub: Hub) -> FastAPI:
    return create_app(settings.model_copy(update={"hub_endpoint": hub.url}))


def test_an_estimate_has_the_files_of_both_datasets(http, body, hub):
    """Two splits of one repository are its files once, and not the same rows."""
    hub.add("org/train", {"train.jsonl": b"1" * 70}, kind="dataset")
    hub.add("org/kept", {"train.jsonl": b"1" * 9}, kind="dataset")
    asked = body | {"dataset": "org/train", "allocation": {"method": "vila"}}
    other = {"source": "hub", "id": "org/train", "split": "test"}

    found = [
        http.post("/estimate", json=asked | {"retain": retain})
        for retain in ("org/kept", other)
    ]
    same = http.post("/estimate", json=asked | {"retain": "org/train"})

    assert [a.json()["fetch"]["dataset_bytes"] for a in found] == [79, 70]
    assert [a.json()["batches"] for a in found] == [16, 16]
    assert same.status_code == 422
    assert "the rows to retain are those of the dataset" in same.json()["detail"]
