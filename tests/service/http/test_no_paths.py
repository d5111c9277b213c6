"""No answer of the service says where anything lies on the server."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fimlora_contract.problems import PROBLEMS
from support.service import make_model


def model_file(name: str, content: bytes) -> Callable[[Path], dict[str, str]]:
    def spoil(data_dir: Path) -> dict[str, str]:
        (make_model(data_dir / "models" / "odd") / name).write_bytes(content)
        return {"base_model": "local:odd"}

    return spoil


def data_file(name: str, content: bytes) -> Callable[[Path], dict[str, str]]:
    def spoil(data_dir: Path) -> dict[str, str]:
        (data_dir / "datasets").mkdir(exist_ok=True)
        (data_dir / "datasets" / name).write_bytes(content)
        return {"dataset": f"local:{name}"}

    return spoil


def link_to_nowhere(data_dir: Path) -> dict[str, str]:
    (data_dir / "models" / "odd").symlink_to(data_dir / "gone")
    return {"base_model": "local:odd"}


def a_file_for_a_model(data_dir: Path) -> dict[str, str]:
    (data_dir / "models" / "odd").write_text("{}")
    return {"base_model": "local:odd"}


def a_pipe_for_rows(data_dir: Path) -> dict[str, str]:
    (data_dir / "datasets").mkdir(exist_ok=True)
    os.mkfifo(data_dir / "datasets" / "odd.jsonl")
    return {"dataset": "local:odd.jsonl"}


@pytest.mark.parametrize(
    "spoil",
    [
        model_file("config.json", b"{"),
        model_file("config.json", b"\xff"),
        model_file("model.safetensors", b"\xff" * 32),
        data_file("odd.jsonl", b"{"),
        data_file("odd.jsonl", b"\xff\xfe"),
        data_file("odd.jsonl", json.dumps({"text": 5}).encode()),
        data_file("odd.parquet", b"PAR1"),
        data_file("odd.parquet", b"PAR1" + b"\0" * 64 + b"PAR1"),
        data_file("odd.csv", b"\xff"),
        data_file("odd.bin", b""),
        link_to_nowhere,
        a_file_for_a_model,
        a_pipe_for_rows,
    ],
)
def test_what_is_broken_is_named_without_its_path(http, body, data_dir, spoil):
    """A problem with a code, and nothing of the data folder in it."""
    change = spoil(data_dir)

    answer = http.post("/calibrate", json=body | change)

    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()["code"] in PROBLEMS
    models, datasets = (http.get(route).json()["data"] for route in ("/models", "/datasets"))
    for shown in (answer.text, json.dumps(models), json.dumps(datasets)):
        assert str(data_dir) not in shown
        assert str(data_dir.parent) not in shown
