"""A broken model ends its job by name, and no answer says where it lies on the server."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fimlora_contract.jobs import JobStatus
from fimlora_service.errors import ServiceError
from fimlora_service.resolve.local_models import LocalModels

BREAKERS: dict[str, Callable[[Path], None]] = {}
NAMED = {"unsupported_architecture", "unsafe_weights", "dataset_schema", "model_not_found"}


def breaker(function: Callable[[Path], None]) -> Callable[[Path], None]:
    BREAKERS[function.__name__] = function
    return function


def change(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def set_in_tokenizer(*path: str, value: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        file = folder / "tokenizer.json"
        content = part = json.loads(file.read_text())
        for name in path[:-1]:
            part = part[name]
        part[path[-1]] = value
        file.write_text(json.dumps(content))

    return spoil


def set_in_config(**fields: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder / "config.json", **fields)


def write(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content) and None


BREAKERS |= {
    "tokenizer is no JSON": write("tokenizer.json", "{"),
    "tokenizer is empty": write("tokenizer.json", ""),
    "tokenizer is a list": write("tokenizer.json", "[]"),
    "tokenizer is an object": write("tokenizer.json", "{}"),
    "tokenizer of no known kind": set_in_tokenizer("model", "type", value="Nonsense"),
    "vocabulary of negative ids": set_in_tokenizer("model", "vocab", value={"a": -1}),
    "vocabulary of texts": set_in_tokenizer("model", "vocab", value={"a": "b"}),
    "vocabulary without the unknown": set_in_tokenizer("model", "vocab", value={"w1": 0}),
    "added tokens that are none": set_in_tokenizer("added_tokens", value=[{"id": "x"}]),
    "splits by a broken expression": set_in_tokenizer(
        "pre_tokenizer",
        value={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False},
    ),
    "post-processor with an unknown token": set_in_tokenizer(
        "post_processor",
        value={
            "type": "TemplateProcessing", "special_tokens": {},
            "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}], "pair": [],
        },
    ),
    "tokenizer settings that are a list": write("tokenizer_config.json", "[1]"),
    "longest input in words": lambda f: change(
        f / "tokenizer_config.json", model_max_length="long"
    ),
    "longest input below zero": lambda f: change(
        f / "tokenizer_config.json", model_max_length=-5
    ),
    "special tokens that are numbers": lambda f: change(
        f / "tokenizer_config.json", pad_token=7, eos_token=[1]
    ),
    "special tokens map is no JSON": write("special_tokens_map.json", "{"),
    "config is no UTF-8": lambda f: (f / "config.json").write_bytes(b'{"a": "\xff"}') and None,
    "config is a list": write("config.json", "[]"),
    "unknown type": set_in_config(model_type="no_such"),
    "type is a number": set_in_config(model_type=5),
    "unknown activation": set_in_config(hidden_act="no_such"),
    "labels that are no map": set_in_config(id2label=5),
    "unknown attention": set_in_config(attn_implementation="no_such", _attn_implementation="no"),
    "more layers than weights": set_in_config(num_hidden_layers=3),
    "another width": set_in_config(hidden_size=32),
    "another inner width": set_in_config(intermediate_size=48),
}  # fmt: skip


def only_an_index(content: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-1-of-1.safetensors")
        (folder / "model.safetensors.index.json").write_text(content)

    return spoil


BREAKERS |= {
    "index is no JSON": only_an_index("{"),
    "index of no map": only_an_index('{"weight_map": 5}'),
    "index of numbers": only_an_index('{"weight_map": {"a": 5}}'),
    "index outside the folder": only_an_index('{"weight_map": {"a": "../x.safetensors"}}'),
}


@breaker
def index_of_missing_shards(folder: Path) -> None:
    names = dict.fromkeys(load_file(folder / "model.safetensors"), "model-1-of-2.safetensors")
    (folder / "model.safetensors").rename(folder / "model-2-of-2.safetensors")
    write("model.safetensors.index.json", json.dumps({"metadata": {}, "weight_map": names}))(
        folder
    )


@breaker
def weights_under_another_name(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights.safetensors")


@breaker
def weights_cut_off(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 900)


@breaker
def weights_of_integers(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: value.astype(np.int32) for name, value in weights.items()},
        folder / "model.safetensors", metadata={"format": "pt"},
    )  # fmt: skip


@breaker
def weights_without_one(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop("encoder.layer.1.output.dense.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@breaker
def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


@breaker
def a_pipe(folder: Path) -> None:
    os.mkfifo(folder / "vocab.txt")


@pytest.fixture
def broken(data_dir: Path, model_folders: Path) -> list[str]:
    """Names of models that are each broken in one way, some of them links to elsewhere."""
    (data_dir / "models").unlink()
    (data_dir / "models").mkdir()
    names = []
    for number, spoil in enumerate(BREAKERS.values()):
        name = f"broken-{number}"
        elsewhere = data_dir.parent / "store" / f"target-{number}"
        folder = elsewhere if number % 3 == 0 else data_dir / "models" / name
        shutil.copytree(model_folders / "tiny", folder)
        spoil(folder)
        if folder is elsewhere:
            (data_dir / "models" / name).symlink_to(elsewhere)
        names.append(name)
    return names


def test_every_broken_model_is_named_and_no_path_is_shown(jobs, run_queue, broken, data_dir):
    """Neither the data folder's nor that of a link's target, in whatever a library raised."""
    ids = {
        name: jobs.submit(
            model=name,
            calibration={"n_batches": 1, "executor": ("resident", "streamed")[n % 2]},
        )
        for n, name in enumerate(broken)
    }
    run_queue()

    ended = {title: jobs.get(ids[n]) for title, n in zip(BREAKERS, broken, strict=True)}
    errors = {
        title: record.json_field("error")
        for title, record in ended.items()
        if record.status is not JobStatus.SUCCEEDED
    }
    assert {t: e for t, e in errors.items() if e["code"] not in NAMED} == {}
    shown = {t: e["detail"] for t, e in errors.items() if str(data_dir.parent) in e["detail"]}
    assert shown == {}
    assert set(BREAKERS) - set(errors) == set()


def test_what_the_service_says_of_them_shows_no_path(broken, data_dir):
    """Most are refused there already."""
    models, refused = LocalModels(data_dir / "models"), []
    for name in broken:
        try:
            models.resolve(name)
        except ServiceError as error:
            refused.append(str(error))

    assert len(refused) >= 12
    assert [text for text in refused if str(data_dir.parent) in text] == []
