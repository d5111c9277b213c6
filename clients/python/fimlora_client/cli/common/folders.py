"""Name things of this machine by links in the data folder of the service that is running.

A link elsewhere would be found by nobody: the service tells its data folder to the operator on its
own machine, and is asked afterwards whether it sees what was linked.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from fimlora_client.blocking.client import Client
from fimlora_client.cli.common.console import say
from fimlora_client.cli.common.context import client_of
from fimlora_client.errors import ClientError, ConnectionFailed, InvalidFile
from fimlora_client.settings import read_settings
from fimlora_contract.near_names import did_you_mean
from fimlora_contract.references import NAME

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        help="The data folder of `fimlora up`: FIMLORA_DATA_DIR, or .fimlora here.",
        show_default=False,
    ),
]
RegistryDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        help="The data folder to link in: that of the running service if left out.",
        show_default=False,
    ),
]


@dataclass(frozen=True, slots=True)
class Place:
    """The data folder that a link goes into.

    Attributes:
        data_dir: The folder.
        service: The running service that should see it; ``None`` if none answers.
        chosen: Whether the caller named the folder, which may be that of another service.
    """

    data_dir: Path
    service: Client | None
    chosen: bool


def data_dir_of(given: Path | None) -> Path:
    """The data folder that was given, else the one of the settings."""
    return (given.expanduser() if given else read_settings().data_dir).absolute()


def find_place(ctx: typer.Context, given: Path | None) -> Place:
    """Where the running service looks, unless a folder is given.

    Raises:
        InvalidFile: It runs where this machine's folders cannot be seen.
    """
    client = client_of(ctx)
    told = _data_dir_told(client)
    if given or told is None:
        return Place(
            data_dir_of(given), client if told is not None else None, given is not None
        )
    if not told and "data_dir" not in read_settings().model_fields_set:
        raise _unseen(client, "does not tell this machine where its data folder is")
    folder = Path(told) if told else data_dir_of(None)
    if not folder.is_dir():
        raise _unseen(client, f"has its data folder at {folder}, which is not on this machine")
    return Place(folder, client, chosen=False)


def say_linked(place: Place, path: Path, *, names: Callable[[Client], list[str]]) -> None:
    """Say where the link is, and whether the running service sees it.

    Raises:
        InvalidFile: It does not.
    """
    say(("  link  ", "dim"), str(path))
    if place.service is None:
        say(("  no service is running; this one will see it:  ", "dim"),
            f"fimlora up --data-dir {place.data_dir}")  # fmt: skip
    elif path.name not in names(place.service):
        if not place.chosen:
            raise _unseen(place.service, "does not see the link")
        say((f"  the service at {place.service.base_url} looks in another folder", "yellow"))


def link(room: Path, name: str, target: Path) -> Path:
    """Make ``room/name`` a link to the target; a link that is already there may move.

    Raises:
        InvalidFile: The name is not allowed or belongs to something that is not a link.
    """
    path = _checked(room, name)
    if path.exists() and not path.is_symlink():
        error = InvalidFile(f"{path} exists and is not a link")
        error.next_step = "Choose another name, or move what is there away."
        raise error
    room.mkdir(parents=True, exist_ok=True)
    part = room / f".{name}.part"
    part.unlink(missing_ok=True)
    part.symlink_to(target)
    return part.replace(path)


def unlink(room: Path, name: str) -> Path:
    """Take the link ``room/name`` away; what it leads to stays.

    Raises:
        InvalidFile: There is no such link.
    """
    path = _checked(room, name)
    if path.is_symlink():
        path.unlink()
        return path
    if path.exists():
        error = InvalidFile(f"{path} is not a link: somebody put it there")
        error.next_step = "Remove it by hand if nothing needs it."
        raise error
    known = sorted(entry.name for entry in room.glob("[!.]*"))
    error = InvalidFile(
        f"nothing is registered as {name!r} in {room}{did_you_mean(name, known)}"
    )
    error.next_step = "It may be in another data folder: give --data-dir."
    raise error


def _checked(room: Path, name: str) -> Path:
    if not re.match(NAME, name):
        error = InvalidFile(f"{name!r} cannot be a name")
        error.next_step = "Use letters, digits, '.', '_' and '-', at most 96."
        raise error
    return room / name


def _data_dir_told(client: Client) -> str | None:
    """The running service's data folder; empty if it does not tell, ``None`` if none answers."""
    try:
        client.liveness()  # asked once, where other calls would wait for it to come
        return client.models.list().data_dir or ""
    except ConnectionFailed:
        return None
    except ClientError:
        return ""


def _unseen(client: Client, why: str) -> InvalidFile:
    error = InvalidFile(f"the service at {client.base_url} {why}")
    error.next_step = (
        "Run this on the service's own machine, with an admin key if it has keys; or name a folder "
        "that it shares with this machine by --data-dir."
    )
    return error
