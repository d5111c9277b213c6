"""What is read whole may be no larger than such a file ever is; both sides say so alike."""

import os
import shutil

import pytest

from fimlora_jobs.models.file_sizes import MAX_BYTES
from fimlora_jobs.models.refusal import ModelRefused
from fimlora_jobs.models.shards import MOST_SHARDS, check_number_of_shards
from fimlora_jobs.models.tokenizer_files import check_tokenizer
from fimlora_service.errors import UnsupportedArchitecture
from fimlora_service.resolve.model_checks import read_model
from fimlora_worker import errors
from fimlora_worker.inputs.model_checks import read_raw_config
from support.service import make_model


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json", "generation_config.json"])
def test_a_file_beyond_the_limit_is_refused_unread(tmp_path, name):
    """Whatever it is called; weights have no limit here, and what is not read has none."""
    folder = make_model(tmp_path / "m")
    for other in ("pytorch_model.bin", "README.md"):
        (folder / other).touch()
        os.truncate(folder / other, MAX_BYTES + 1)
    read_model(folder, where="it")
    (folder / name).touch()
    os.truncate(folder / name, MAX_BYTES + 1)  # it takes no room on the disk

    with pytest.raises(UnsupportedArchitecture, match=rf"{name} has 134,217,729 bytes"):
        read_model(folder, where="it")
    with pytest.raises(errors.UnsupportedArchitecture, match=rf"{name} has 134,217,729 bytes"):
        read_raw_config(folder)


def test_a_tokenizer_of_brackets_is_refused_before_it_takes_memory(tmp_path):
    """Thirty megabytes of them would be two thousand of lists."""
    folder = make_model(tmp_path / "m")
    (folder / "tokenizer.json").write_bytes(b'{"model": [' + b"[]," * 10_000_000 + b"0]}")

    with pytest.raises(ModelRefused, match="more than 8,000,000 values"):
        check_tokenizer(folder, {}, None)
    shutil.rmtree(folder)


def test_no_model_has_thousands_of_files_of_weights():
    """The head of each would be asked for."""
    check_number_of_shards(["x"] * MOST_SHARDS)
    with pytest.raises(ModelRefused, match="2,001 files of weights; at most 2,000"):
        check_number_of_shards(["x"] * (MOST_SHARDS + 1))
