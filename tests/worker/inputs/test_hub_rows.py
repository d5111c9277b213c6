"""Datasets of the hub: read as registered files are, or refused by name."""

import io
import json
import os
import re
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fimlora_worker.inputs.hub_rows import dataset_rows, named_errors
from support.hub import running_hub
from support.seeing import pixels, png

CARD = """---
dataset_info:
  features:
  - name: text
    dtype: string
  - name: label
    dtype:
      class_label:
        names:
          '0': x
          '1': y
          '2': z
  splits:
  - name: {split}
    num_bytes: 10
    num_examples: 5
---
"""


def parquet(**columns) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


ROWS = parquet(text=["a", "b"], label=[0, 1])
LINES = '{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n'
READABLE = {
    "parquet": {"data/train-0.parquet": ROWS},
    "jsonl": {"train.jsonl": LINES},
    "csv": {"train.csv": "text,label\na,0\nb,1\n"},
    "semicolons": {
        "README.md": '---\nconfigs:\n- config_name: default\n  data_files: x.csv\n  sep: ";"\n---\n',
        "x.csv": "text;label\na;0\nb;1\n",
    },
    "json-array": {"train.json": '[{"text": "a", "label": 0}, {"text": "b", "label": 1}]'},
    "more-columns": {
        "data/train-0.parquet": parquet(text=["a"], label=[0]),
        "data/train-1.parquet": parquet(text=["b"], label=[1], more=[1.5]),
    },
    "other-widths": {
        "data/train-0.parquet": parquet(text=["a"], label=pa.array([0], pa.int8())),
        "data/train-1.parquet": parquet(text=pa.array(["b"], pa.large_string()), label=[1]),
    },
    "wrong-sizes": {"README.md": CARD.format(split="train"), "data/train-0.parquet": ROWS},
    "splits-of-the-card": {"README.md": CARD.format(split="test"), "train.jsonl": LINES},
    "first-row-lacks-it": {"train.jsonl": LINES.replace('"label"', '"more": 1, "label"', 1)},
}
REFUSED = {
    "script": (
        {"script.py": "x = 1", "README.md": "# data"},
        "dataset_unreachable",
        "loading script",
    ),
    "script-beside": (
        {"script-beside.py": "", "train.jsonl": LINES},
        "dataset_unreachable",
        "is never run",
    ),
    "no-files": ({"README.md": "# data"}, "dataset_unreachable", "any data files"),
    "no-split": ({"test.jsonl": LINES}, "dataset_unreachable", 'Unknown split "train"'),
    "line": ({"train.jsonl": LINES + "{\n"}, "dataset_schema", "line 3 is not JSON"),
    "cells": ({"train.csv": "text,label\na\n"}, "dataset_schema", "line 2 has 1 cells"),
    "damaged": (
        {"data/train-0.parquet": b"PAR1"},
        "dataset_schema",
        "no rows|not a sound Parquet",
    ),
    "card": (
        {"README.md": "---\na: [}\n---\n", "train.jsonl": LINES},
        "dataset_schema",
        "'org/",
    ),
    "json": ({"train.json": "{"}, "dataset_schema", "'org/"),
}


DECLARED = {
    "classes-of-parquet": {"README.md": CARD.format(split="train"), "train.parquet": ROWS},
    "classes-of-jsonl": {"README.md": CARD.format(split="train"), "train.jsonl": LINES},
}
KINDS = {"kinds": {"train.jsonl": '{"text": "a", "label": 0}\n{"text": 5, "label": "b"}\n'}}
# The library takes the hub's address from the environment when it is imported.
OPEN = """
import json, sys
from pathlib import Path
from fimlora_contract.references import HubDataset
from fimlora_worker.inputs.hub_rows import open_hub_rows
from fimlora_worker.job.failures import job_error

def look(name, commit):
    reference = HubDataset(id=f"org/{name}")
    try:
        rows = open_hub_rows(reference, commit, cache=Path(sys.argv[1]), alive=lambda: None)
        read = rows.read(range(rows.n_rows), ["text", "label"])
        found = [[row.get("text"), row.get("label")] for _, row in read]
        return {"rows": found, "names": rows.names, "classes": dict(rows.classes)}
    except Exception as error:
        return {"code": job_error(error).code, "detail": str(error)}

print(json.dumps({name: look(name, commit) for name, commit in json.loads(sys.argv[2]).items()}))
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Where downloads go."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def found(cache, tmp_path_factory):
    """What a worker finds in each repository."""
    cases = READABLE | DECLARED | KINDS | {name: case[0] for name, case in REFUSED.items()}
    home = tmp_path_factory.mktemp("home")
    with running_hub() as hub:
        commits = {
            name: hub.add(f"org/{name}", files, kind="dataset").commit
            for name, files in cases.items()
        }
        done = subprocess.run(
            [sys.executable, "-c", OPEN, str(cache), json.dumps(commits)],
            env=os.environ
            | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"},
            cwd=home,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", READABLE)
def test_files_that_differ_harmlessly_hold_the_same_rows(found, name):
    """In every format, with a card that is wrong about them, or with columns nobody uses."""
    assert "rows" in found[name], found[name]
    rows = [(text, int(label)) for text, label in found[name]["rows"]]
    assert rows == [("a", 0), ("b", 1)]


@pytest.mark.parametrize("name", DECLARED)
def test_classes_that_a_card_declares_count(found, name):
    """For a file that declares none itself."""
    assert found[name]["classes"] == {"label": ["x", "y", "z"]}


def test_values_of_several_kinds_stay_what_they_are(found):
    """Where one library's table would make JSON text of all of them."""
    assert found["kinds"]["rows"] == [["a", 0], [5, "b"]]


@pytest.mark.parametrize(("name", "code", "message"), [(n, *c[1:]) for n, c in REFUSED.items()])
def test_what_cannot_be_read_is_refused_by_name(found, cache, name, code, message):
    """As the dataset's fault; and no message shows a folder of this machine."""
    assert found[name].get("code") == code, found[name]
    assert re.search(message, found[name]["detail"])
    assert str(cache) not in found[name]["detail"]


@pytest.mark.parametrize(
    "error", [ConnectionError("away"), OSError(28, "no space"), MemoryError()], ids=repr
)
@pytest.mark.parametrize("is_inner", [True, False])
def test_what_is_no_fault_of_the_data_stays_what_it_is(tmp_path, error, is_inner):
    """Also where a library has wrapped it in an error about the data."""

    def fail():
        if is_inner:
            raise ValueError("could not generate") from error
        raise error

    with pytest.raises(type(error)), named_errors("org/data", cache=tmp_path):
        fail()


def test_images_stay_as_they_are_stored():
    """Nothing decodes them that has not looked at their size."""
    import datasets

    content = png(pixels(0, 4, 4))
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = {"image": [{"bytes": content, "path": None}], "text": ["a"]}
    dataset = datasets.Dataset.from_dict(rows, features=features)

    [(where, row)] = dataset_rows(dataset).read([0], ["image", "text"])

    assert where == "row 1"
    assert row == {"image": {"bytes": content, "path": None}, "text": "a"}
