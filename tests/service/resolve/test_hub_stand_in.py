"""The stand-in hub answers the real client libraries as the hub would."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from support.hub import Hub

MODEL = {"config.json": '{"model_type": "bert"}', "model.safetensors": b"\0" * 3000}
LOAD_DATASET = """
import sys, datasets
rows = datasets.load_dataset("hf://datasets/org/data", revision=sys.argv[1], split="train")
assert rows["text"] == ["one", "two"], rows
"""


def test_snapshot_download_fetches_the_allowed_files(hub: Hub, tmp_path: Path):
    """What lands in the cache is what was published, at the right commit."""
    repository = hub.add("org/model", MODEL | {"pytorch_model.bin": b"x"}, revisions=("v1",))

    folder = Path(
        snapshot_download(
            "org/model",
            revision="v1",
            cache_dir=tmp_path,
            endpoint=hub.url,
            allow_patterns=["*.json", "*.safetensors"],
        )
    )

    assert folder.name == repository.commit
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == MODEL["model.safetensors"]


def test_a_missing_repository_or_revision_is_told_apart(hub: Hub):
    """The client library raises its own exception for each."""
    hub.add("org/model", MODEL)
    api = HfApi(endpoint=hub.url)

    with pytest.raises(RepositoryNotFoundError):
        api.model_info("org/other")
    with pytest.raises(RevisionNotFoundError):
        api.model_info("org/model", revision="v9")


def test_files_of_a_gated_repository_are_refused(hub: Hub, tmp_path: Path):
    """The description is public, the files are not."""
    hub.add("org/model", MODEL, gated=True)
    api = HfApi(endpoint=hub.url)

    assert api.model_info("org/model").gated == "manual"
    with pytest.raises(GatedRepoError):
        api.hf_hub_download("org/model", "config.json", cache_dir=tmp_path)


@pytest.mark.slow
def test_datasets_loads_a_hub_dataset(hub: Hub, tmp_path: Path):
    """The real loader finds the data file and reads it at a commit."""
    rows = '{"text": "one"}\n{"text": "two"}\n'
    repository = hub.add("org/data", {"data/train.jsonl": rows}, kind="dataset")
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path)}

    subprocess.run(
        [sys.executable, "-c", LOAD_DATASET, repository.commit],
        env=environment,
        cwd=tmp_path,
        check=True,
        timeout=120,
    )
