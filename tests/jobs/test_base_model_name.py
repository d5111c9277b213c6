"""What adapters call a registered model, told by its side file or its place in a cache."""

import pytest

from fimlora_contract.models import hub_id_of, name_file
from fimlora_jobs.models.base_model_name import base_model_name


@pytest.fixture
def models(tmp_path):
    """A room for registered models, with a folder that any name may lead to."""
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


@pytest.mark.parametrize(
    "given", ["org/model", "/data/models/my model", "C:\\models\\x", "M\u00fcller/modell"]
)
def test_what_was_given_is_what_adapters_say(models, given):
    """A hub id or a path, in one line."""
    name_file(models, "mine").write_text(f"{given}\n", encoding="utf-8")

    assert base_model_name(models, "mine") == given


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"a\nb\n", b"\xff\xfe", b"x" * 1025, b"a\x00b", b" org/model"]
)
def test_a_file_that_is_no_name_is_not_believed(models, content):
    """Then nothing is known, which is what adapters say."""
    name_file(models, "mine").write_bytes(content)
    (models / "mine").mkdir()

    assert base_model_name(models, "mine") is None


def test_a_snapshot_of_the_hub_cache_tells_its_id(models, tmp_path):
    """However many links lead there."""
    snapshot = tmp_path / "hub" / "models--org--my-model" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (tmp_path / "other").symlink_to(snapshot)
    (models / "mine").symlink_to(tmp_path / "other")

    assert base_model_name(models, "mine") == "org/my-model"
    assert hub_id_of(snapshot) == "org/my-model"
    assert hub_id_of(snapshot.parent) is None
    assert hub_id_of(tmp_path) is None
