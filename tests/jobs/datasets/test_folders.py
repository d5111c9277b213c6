"""Which files make a model or a dataset, and when their digest changes."""

import os
import socket

import pytest

from fimlora_contract.digests import digest_bytes, digest_of
from fimlora_jobs.datasets.folders import (
    FolderDigests,
    FolderError,
    dataset_files,
    is_wanted,
    model_files,
)
from fimlora_jobs.models.tokenizer_files import SUFFIXES


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"w")
    (folder / "README.md").write_text("hello")
    return folder


def test_a_model_is_what_it_is_loaded_from(model):
    """The digest covers configuration and weights; a read-me does not count."""
    expected = digest_of({
        "config.json": digest_bytes(b"{}"),
        "model.safetensors": digest_bytes(b"w"),
    })  # fmt: skip

    assert FolderDigests().of_model(model) == expected


@pytest.mark.parametrize("name", ["bpe.codes", *(f"vocabulary{suffix}" for suffix in SUFFIXES)])
def test_a_vocabulary_is_a_part_of_its_model(model, name):
    """It is fetched from the hub, and another one makes another model."""
    before = FolderDigests().of_model(model)
    (model / name).write_bytes(b"v")

    assert is_wanted(name)
    assert FolderDigests().of_model(model) != before


def test_a_changed_weight_file_changes_the_digest(model):
    """What was remembered about a file is dropped when the file changes."""
    digests = FolderDigests()
    before = digests.of_model(model)
    (model / "model.safetensors").write_bytes(b"v")
    os.utime(model / "model.safetensors", ns=(1, 1))

    assert digests.of_model(model) != before


def test_a_file_put_in_the_place_of_another_is_read_though_size_and_time_are_the_same(model):
    """The time that the inode changed is nobody's to set."""
    weights = model / "model.safetensors"
    digests = FolderDigests()
    before, state = digests.of_model(model), weights.stat()
    weights.write_bytes(b"v")
    os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns))

    assert weights.stat().st_mtime_ns == state.st_mtime_ns
    assert digests.of_model(model) != before


def test_a_link_has_the_digest_of_its_target(model, tmp_path):
    """Registering by link or by copy is the same model."""
    link = tmp_path / "link"
    link.symlink_to(model)

    assert FolderDigests().of_model(link) == FolderDigests().of_model(model)


def test_a_folder_without_config_is_no_model(tmp_path):
    """The error names the model and what it lacks."""
    (tmp_path / "empty").mkdir()

    with pytest.raises(FolderError, match=r"'empty' has no config\.json"):
        model_files(tmp_path / "empty")
    with pytest.raises(FolderError, match="no model folder 'missing'"):
        model_files(tmp_path / "missing")


def test_a_dataset_is_a_file_a_folder_or_a_link(tmp_path):
    """A link without a suffix stands for the file behind it."""
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "b.jsonl").write_text("{}\n")
    (folder / "a.jsonl").write_text("{}\n")
    (folder / "notes.md").write_text("x")
    link = tmp_path / "link"
    link.symlink_to(folder / "a.jsonl")

    assert list(dataset_files(folder)) == ["a.jsonl", "b.jsonl"]
    assert list(dataset_files(link)) == ["a.jsonl"]


def test_a_dataset_of_two_formats_or_none_is_refused(tmp_path):
    """Mixed files have no common columns to read."""
    with pytest.raises(FolderError, match="holds no file"):
        dataset_files(tmp_path)
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "b.parquet").touch()
    with pytest.raises(FolderError, match="mixes"):
        dataset_files(tmp_path)


@pytest.mark.parametrize("make", ["pipe", "socket", "device", "broken-link"])
def test_what_is_no_file_is_refused_and_not_opened(model, tmp_path, make):
    """Reading it would wait, or never end."""
    rows = tmp_path / "rows"
    rows.mkdir()
    (rows / "a.jsonl").write_text("{}\n")
    for odd in (rows / "b.jsonl", model / "tokenizer.json"):
        put_odd(odd, make)

    with pytest.raises(
        FolderError, match=r"dataset 'rows' holds 'b\.jsonl', which is no ordin"
    ):
        dataset_files(rows)
    with pytest.raises(
        FolderError, match=r"model 'm' holds 'tokenizer\.json', which is no ord"
    ):
        model_files(model)
    with pytest.raises(FolderError, match=r"no ordinary file|holds no file"):
        dataset_files(rows / "b.jsonl")


def put_odd(path, make):
    """Something that has the name of a file."""
    if make == "pipe":
        os.mkfifo(path)
    elif make == "device":
        path.symlink_to("/dev/zero")
    elif make == "broken-link":
        path.symlink_to(path.parent / "nowhere.jsonl")
    else:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))


def test_files_are_read_in_the_order_of_their_numbers(tmp_path):
    """As they were written, whether their names are padded or not."""
    for number in (10, 9, 1, 2, 11):
        (tmp_path / f"part-{number}-of-11.csv").touch()

    names = [name.split("-")[1] for name in dataset_files(tmp_path)]

    assert names == ["1", "2", "9", "10", "11"]
