"""Digests outlast a process, and never the content that they are of."""

import os
import time

import pytest

from fimlora_contract.digests import digest_file
from fimlora_jobs.datasets import folders
from fimlora_jobs.datasets.folders import FolderDigests
from fimlora_jobs.datasets.kept_digests import SETTLED_NS, KeptDigests, stamp_of


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "models" / "m"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def read(monkeypatch):
    """Names of the files that are read, in turn."""
    found = []

    def reading(path):
        found.append(path.name)
        return digest_file(path)

    monkeypatch.setattr(folders, "digest_file", reading)
    return found


def later():
    return time.time_ns() + 2 * SETTLED_NS


def started(tmp_path, now_ns=later, large=4):
    """What a process that has just started knows."""
    return FolderDigests(KeptDigests(tmp_path / "digests", large=large, now_ns=now_ns))


def test_large_files_are_not_read_again_after_a_restart(tmp_path, model, read):
    """Small ones are: they would take as long to look up."""
    before = started(tmp_path).of_model(model)

    assert started(tmp_path).of_model(model) == before
    assert read == ["config.json", "model.safetensors", "config.json"]


def test_of_one_path_and_size_and_time_another_content_is_read(tmp_path, model, read):
    """In place or by a file moved there: the inode or the time of its change tells."""
    weights = model / "model.safetensors"
    digests, state = {started(tmp_path).of_model(model)}, weights.stat()
    for content, in_place in ((b"WEIGHTS", True), (b"wEIGHTS", False)):
        written = weights if in_place else tmp_path / "new"
        written.write_bytes(content)
        os.utime(written, ns=(state.st_atime_ns, state.st_mtime_ns))
        written.rename(weights)
        assert weights.stat().st_mtime_ns == state.st_mtime_ns
        assert weights.stat().st_size == state.st_size
        digests.add(started(tmp_path).of_model(model))

    assert len(digests) == 3
    assert read.count("model.safetensors") == 3


def test_what_changed_just_now_is_not_kept(tmp_path, model, read):
    """It may change once more before the clock of the file system ticks."""
    for _ in range(2):
        started(tmp_path, now_ns=time.time_ns).of_model(model)

    assert read.count("model.safetensors") == 2


def test_what_changes_while_it_is_read_is_not_remembered(tmp_path, model, monkeypatch):
    """Neither for this process nor for the next."""
    n_read = []

    def growing(path):
        n_read.append(path.name)
        digest = digest_file(path)
        path.write_bytes(path.read_bytes() + b"more")
        return digest

    monkeypatch.setattr(folders, "digest_file", growing)
    digests = started(tmp_path)
    assert digests.of_model(model) != digests.of_model(model)
    started(tmp_path).of_model(model)

    assert n_read.count("model.safetensors") == 3


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"path": 3}', b'{"digest": 1}'])
def test_an_entry_that_cannot_be_understood_is_as_none(tmp_path, model, read, content):
    """It is written anew."""
    before = started(tmp_path).of_model(model)
    [entry] = (tmp_path / "digests").iterdir()
    entry.write_bytes(content)

    assert started(tmp_path).of_model(model) == before
    assert started(tmp_path).of_model(model) == before
    assert read.count("model.safetensors") == 2


def test_an_entry_of_another_file_is_none_of_this(tmp_path, model):
    """Though it lies where this one's would."""
    kept = KeptDigests(tmp_path / "digests", large=1, now_ns=later)
    path, stamp = model / "model.safetensors", stamp_of((model / "model.safetensors").stat())
    kept.keep(path, stamp, "sha256:one")
    [entry] = (tmp_path / "digests").iterdir()
    entry.write_bytes(entry.read_bytes().replace(b"model.safetensors", b"other.safetensors"))

    assert kept.find(path, stamp) is None


def test_entries_of_files_that_are_gone_go(tmp_path, model):
    """With the next one that is written; no half of one is left."""
    started(tmp_path).of_model(model)
    (model / "model.safetensors").rename(model / "other.safetensors")
    started(tmp_path).of_model(model)

    assert len([*(tmp_path / "digests").iterdir()]) == 1


def test_where_nothing_can_be_written_files_are_read(tmp_path, model, read):
    """As before: what is kept saves time, and no more."""
    (tmp_path / "digests").write_text("a file")
    before = started(tmp_path).of_model(model)

    assert started(tmp_path).of_model(model) == before
    assert read.count("model.safetensors") == 2
