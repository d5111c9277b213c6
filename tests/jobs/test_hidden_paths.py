"""Users read names in messages, never where things lie on the server."""

from pathlib import Path

import pytest

from fimlora_jobs.hidden_paths import hide_addresses, hide_paths


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data folder with a model, and a link to one that lies elsewhere."""
    root = tmp_path / "data folder"
    (root / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "store" / "llama-7b").mkdir(parents=True)
    (root / "models" / "linked").symlink_to(tmp_path / "store" / "llama-7b")
    return root


def test_paths_of_the_data_folder_become_registered_names(root, tmp_path):
    """A model is its name, a file lies in it; a link has the name of the link."""
    shown = {
        f"cannot read {root}/models/tiny/config.json: bad": "cannot read tiny/config.json: bad",
        f"'{root}/models/tiny' has no weights": "'tiny' has no weights",
        f"{tmp_path}/store/llama-7b/x.json ends": "linked/x.json ends",
        f"[Errno 2] No such file: '{root}/uploads/ds_1/data.jsonl'": (
            "[Errno 2] No such file: 'ds_1/data.jsonl'"
        ),
    }

    assert {text: hide_paths(text, root=root) for text in shown} == shown


def test_a_snapshot_becomes_its_name_on_the_hub(root):
    """Nobody knows a model by its commit and the cache's folder."""
    folder = f"{root}/hub/models/models--org--some-model/snapshots/{'ab' * 20}"

    assert hide_paths(f"{folder}/config.json is odd", root=root) == (
        "org/some-model/config.json is odd"
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("File /usr/lib/python3/json.py, line 3", "File json.py, line 3"),
        ("in /tmp/a/b.", "in b."),
        ("see https://huggingface.co/docs/transformers for more", None),
        ("org/name and and/or stay; 3 tokens/s; /v1/jobs/1 is a route", None),
        ("the modules model.layers.0/1 and a/b/c", None),
    ],
)
def test_other_paths_lose_their_folders_and_all_else_stays(text, shown):
    """Only what exists at the root of this machine is a path of it."""
    assert hide_paths(text) == (shown or text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("401 for url http://10.0.0.5:8080/org/m/resolve/x.json.", "401 for url {}."),
        ("https://cdn.example/x?Signature=abc&Expires=1 is gone", "{} is gone"),
        (
            "cannot connect to 's3://minio:9000/bucket', tried twice",
            "cannot connect to '{}', tried twice",
        ),
        ("redis://:pw@h:1/0 (refused)", "{} (refused)"),
        ("org/name at revision main; 3 tokens/s", None),
    ],
)
def test_addresses_that_were_called_are_the_operators(text, shown):
    """A mirror's address, or one that is signed."""
    expected = (shown or text).format("(an address that is the operator's)")

    assert hide_addresses(text) == expected
