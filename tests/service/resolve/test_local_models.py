"""Registered models are read again when their folder has changed, and only then."""

import json
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fimlora_jobs.datasets.folders import FolderDigests
from fimlora_service.errors import ModelNotFound, UnsafeWeights, UnsupportedArchitecture
from fimlora_service.resolve.local_models import MAX_MODELS, LocalModels
from support.service import CONFIG, make_model


@pytest.fixture
def models(tmp_path: Path) -> Path:
    make_model(tmp_path / "models" / "tiny")
    return tmp_path / "models"


def add_config(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | {"model_type": "roberta"}))


def add_shard(folder: Path) -> None:
    save_file({"pooler.weight": np.zeros((16, 16), "f")}, folder / "second.safetensors")


def replace_weights(folder: Path) -> None:
    """Weights of the same size and, as far as names go, the same file."""
    content = (folder / "model.safetensors").read_bytes()
    other = folder / "incoming"
    other.write_bytes(content.replace(b"encoder.layer.1", b"encoder.layer.7"))
    other.rename(folder / "model.safetensors")


def replace_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    make_model(folder, config=CONFIG | {"hidden_size": 32})


@pytest.mark.parametrize("change", [add_config, add_shard, replace_weights, replace_folder])
def test_a_change_shows_at_the_next_request(models: Path, change: Callable[[Path], None]):
    """What is resolved afterwards is what somebody finds who has never looked before."""
    known = LocalModels(models)
    before = known.resolve("tiny")

    change(models / "tiny")

    after = known.resolve("tiny")
    assert after == LocalModels(models).resolve("tiny")
    assert after != before
    assert after.digest == FolderDigests().of_model(models / "tiny")


def test_an_unchanged_model_is_not_read_again(models: Path):
    """The second answer is made of what was read for the first; several threads at once get equal ones."""
    known = LocalModels(models)

    first = known.resolve("tiny")

    assert known.resolve("tiny") == first
    assert known.resolve("tiny").shapes is first.shapes
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(LocalModels(models).resolve, ["tiny"] * 20))
    assert found == [first] * 20


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (shutil.rmtree, ModelNotFound),
        (lambda folder: (folder / "config.json").unlink(), UnsupportedArchitecture),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"?"), UnsafeWeights),
    ],
    ids=["gone", "no-config", "broken-weights"],
)
def test_what_was_sound_is_refused_once_it_no_longer_is(models: Path, spoil, error):
    """An earlier answer is no reason to accept; repaired, the model is accepted again."""
    known = LocalModels(models)
    sound = known.resolve("tiny")

    spoil(models / "tiny")

    for _ in range(2):
        with pytest.raises(error):
            known.resolve("tiny")
    shutil.rmtree(models / "tiny", ignore_errors=True)
    make_model(models / "tiny")
    assert known.resolve("tiny") == sound


def test_a_name_that_is_no_folder_is_no_model(models: Path):
    """A file, a link to nowhere and a link to itself are there, and told from unknown names."""
    (models / "file").write_text("")
    (models / "nowhere").symlink_to("missing")
    (models / "itself").symlink_to("itself")

    for name, reason in {
        "file": "'file' is a file, and a model is a folder",
        "nowhere": "'nowhere' is a broken link",
        "itself": "'itself' is a broken link",
        "unknown": "no local model 'unknown'; registered models: ['file', 'itself', 'nowhere', 'tiny']",
    }.items():
        with pytest.raises(ModelNotFound, match=re.escape(reason)):
            LocalModels(models).resolve(name)


def test_where_none_is_registered_the_command_is_named(tmp_path: Path):
    """Whoever starts a service for the first time has nothing to choose from."""
    with pytest.raises(ModelNotFound, match="no model is registered yet; `fimlora models add"):
        LocalModels(tmp_path).resolve("tiny")


def test_more_models_than_are_remembered_are_all_found(models: Path):
    """Memory is bounded; the answers are the same."""
    names = [f"m{n}" for n in range(MAX_MODELS + 2)]
    for name in names:
        make_model(models / name)
    known = LocalModels(models)

    for _ in range(2):
        assert [known.resolve(name).reference["name"] for name in names] == names
