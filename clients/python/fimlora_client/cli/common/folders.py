"""Name things of this machine by links in the data folder."""

import re
from pathlib import Path
from typing import Annotated

import typer

from fimlora_client.errors import InvalidFile
from fimlora_client.settings import read_settings
from fimlora_contract.references import NAME

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        help="The data folder of `fimlora up`: FIMLORA_DATA_DIR, or .fimlora here.",
        show_default=False,
    ),
]


def data_dir_of(given: Path | None) -> Path:
    """The data folder that was given, else the one of the settings."""
    return (given.expanduser() if given else read_settings().data_dir).absolute()


def link(room: Path, name: str, target: Path) -> Path:
    """Make ``room/name`` a link to the target; a link that is already there may move.

    Raises:
        InvalidFile: The name is not allowed or belongs to something that is not a link.
    """
    if not re.match(NAME, name):
        raise InvalidFile(
            f"{name!r} cannot be a name: use letters, digits, '.', '_' and '-', at most 96"
        )
    path = room / name
    if path.exists() and not path.is_symlink():
        raise InvalidFile(f"{path} exists and is not a link; remove it first")
    room.mkdir(parents=True, exist_ok=True)
    part = room / f".{name}.part"
    part.unlink(missing_ok=True)
    part.symlink_to(target)
    return part.replace(path)
