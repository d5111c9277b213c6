"""What a command is given, as a request wants it: models by name, files uploaded, names split."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import typer

from fimlora_client.blocking.client import Client
from fimlora_client.bodies import UPLOADS
from fimlora_client.cli.common.console import err, say
from fimlora_client.errors import InvalidFile
from fimlora_contract.datasets import Dataset
from fimlora_contract.references import expand_dataset
from fimlora_contract.targets import is_expression

Request = TypeVar("Request")
# Stands for a file that is still to be uploaded.
NOT_YET = {"source": "upload", "id": f"ds_{0:032x}"}


def checked_model(model: str) -> str:
    """Refuse a path early: the service only knows names."""
    if model.startswith((".", "/", "~")) or (model.endswith("/") and Path(model).is_dir()):
        error = InvalidFile(f"{model} is a path; base models are given by name")
        error.next_step = f"Register it: fimlora models add NAME {model}"
        raise error
    return model


def checked_file(dataset: str) -> Path:
    """Refuse a folder: one is registered, and only a file is uploaded."""
    path = Path(dataset).expanduser()
    if path.is_dir():
        error = InvalidFile(f"{dataset} is a folder; only a file of rows is uploaded")
        error.next_step = (
            f"Name a file in it, or register it: fimlora datasets add NAME {dataset}"
        )
        raise error
    return path


def upload_file(client: Client, file: Path) -> Dataset:
    """Upload a file; on a terminal a moving line shows that something happens."""
    with err().status(f"uploading {file.name}"):
        return client.datasets.upload(file)


def is_file(dataset: str) -> bool:
    """Whether a dataset is a file here, and no name; of a kind that is read, or refused by name."""
    path = Path(dataset)
    is_here = bool(path.suffix) and path.is_file()
    is_path = dataset.startswith((".", "/", "~")) or (dataset.endswith("/") and path.is_dir())
    return is_here or is_path or path.suffix in UPLOADS


def find_dataset(client: Client, dataset: str) -> dict[str, Any]:
    """The reference for a dataset; a file here is uploaded first."""
    if is_file(dataset):
        path = checked_file(dataset)
        uploaded = upload_file(client, path)
        rows = f", {uploaded.rows:,} rows" if uploaded.rows is not None else ""
        say(("✓ ", "green"), f"uploaded {path.name} as {uploaded.id}{rows}")
        return {"source": "upload", "id": uploaded.id}
    found: dict[str, Any] = expand_dataset(dataset)
    return found


def with_datasets(
    client: Client,
    build: Callable[..., Request],
    fields: dict[str, Any],
    named: Mapping[str, str | None],
    more: Mapping[str, Any],
) -> Request:
    """A request for datasets as commands name them; files are uploaded, once all else is right.

    Args:
        client: Uploads them.
        build: Checks the fields of such a request.
        fields: All of it but datasets.
        named: Datasets by their fields, where they are given.
        more: What is said of the dataset besides; columns go by the same names in all.
    """
    names = {role: name for role, name in named.items() if name is not None}
    besides = {role: _said_of(role, more) for role in names}
    known = {
        role: NOT_YET if is_file(name) else expand_dataset(name) for role, name in names.items()
    }
    if "split" in more and known["dataset"]["source"] != "hub":
        raise typer.BadParameter(
            f"--split {more['split']}: only a dataset of the hub has splits"
        )
    build(None, **fields, **{role: known[role] | besides[role] for role in names})
    found = {role: find_dataset(client, name) | besides[role] for role, name in names.items()}
    return build(None, **fields, **found)


def _said_of(role: str, more: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in more.items() if role == "dataset" or key == "columns"}


def parameters_asked(names: str | None) -> str | list[str] | None:
    """Read which fused experts are asked for: the word all, or names with commas between."""
    if names is None or names == "all":
        return names
    return [name.strip() for name in names.split(",")]


def names_of(names: str | None) -> list[str] | None:
    """Read names with commas between."""
    return None if names is None else [name.strip() for name in names.split(",")]


def split_names(names: str | None) -> str | list[str] | None:
    """A text with a sign that no name has is a regular expression."""
    if names is None or names == "all-linear" or is_expression(names):
        return names
    return [name.strip() for name in names.split(",")]


def columns_of(pairs: list[str] | None) -> dict[str, str] | None:
    """Columns by role; an empty name leaves one alone."""
    return pairs_of("--column", "ROLE=NAME", pairs, may_be_empty=True)


def pairs_of(
    option: str, form: str, pairs: list[str] | None, *, may_be_empty: bool = False
) -> dict[str, str] | None:
    """What a repeatable option of the form KEY=VALUE says."""
    if not pairs:
        return None
    split = [pair.partition("=") for pair in pairs]
    for key, equals, value in split:
        if not key or not (value or (equals and may_be_empty)):
            raise typer.BadParameter(f"{option} {key!r} is not of the form {form}")
    return {key: value for key, _, value in split}
