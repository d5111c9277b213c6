"""What every process expects of the environment: names that are known, secrets in files."""

import difflib
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, get_args
from urllib.parse import parse_qs, urlsplit, urlunsplit

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from fimlora_contract.environment_names import NAMES, SECRETS

PREFIX = "FIMLORA_"
FILE = "_FILE"
# Marks of fields whose values must not be shown as they are.
SECRET, ADDRESS = "a secret", "an address that may hold a password"
Secret = Annotated[str, SECRET]
Address = Annotated[str, ADDRESS]
# What Kubernetes and docker add for a service whose name begins with fimlora.
LINK = re.compile(
    r".*_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)", re.IGNORECASE
)
LINK_ADDRESS = re.compile(r"(tcp|udp|sctp)://\S+")


class SettingsError(ValueError):
    """The environment cannot be used; the sentence names variables and shows no secret."""


def check_names(environ: Mapping[str, str], *, known: Collection[str] = NAMES) -> None:
    """Refuse a name of ours that no process reads: it would change nothing, in silence.

    Raises:
        SettingsError: Names it, and the known one that is nearest.
    """
    unknown = sorted(
        name
        for name, value in environ.items()
        if name.upper().startswith(PREFIX)
        and name.upper() not in known
        and not _is_link(name, value)
    )
    if unknown:
        found = "; ".join(_unknown(name, known) for name in unknown)
        raise SettingsError(f"{found}; correct it or unset it")


def is_link_address(name: str, value: str) -> bool:
    """Whether a variable was added for a service of that name, though a setting has it, too.

    A Service named fimlora makes FIMLORA_PORT an address: nobody has chosen it.
    """
    return name.upper().endswith("_PORT") and bool(LINK_ADDRESS.fullmatch(value))


def read_secret(environ: Mapping[str, str], name: str) -> str | None:
    """A secret's value, from the variable or from the file that ``NAME_FILE`` names.

    Raises:
        SettingsError: Both are given, or the file is empty or cannot be read.
    """
    value, path = environ.get(name) or None, environ.get(name + FILE)
    if not path:
        return value
    if value:
        raise SettingsError(f"{name} and {name}{FILE} are both given; unset one of them")
    try:
        text = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise SettingsError(
            f"{name}{FILE} names a file that cannot be read: {reason}"
        ) from error
    if not text.strip():
        raise SettingsError(f"{name}{FILE} names a file that is empty")
    return text


def environment_name(settings: type[BaseModel], field_name: str) -> str:
    """The environment variable that a setting is read from."""
    alias = settings.model_fields[field_name].validation_alias
    return f"{PREFIX}{field_name}".upper() if alias is None else str(alias).upper()


def is_secret(field: FieldInfo) -> bool:
    """Whether a value must not be shown as it is; it may come from a file, too."""
    kinds = {field.annotation, *get_args(field.annotation)}
    return SecretStr in kinds or bool({SECRET, ADDRESS} & {*map(str, _marks(field))})


def is_address(field: FieldInfo) -> bool:
    """Whether only a password inside the value must be hidden."""
    return ADDRESS in _marks(field)


def names_read(settings: type[BaseModel]) -> set[str]:
    """Every variable that settings are read from, those of files included."""
    names = {environment_name(settings, name) for name in settings.model_fields}
    return names | secrets_read(settings)


def secrets_read(settings: type[BaseModel]) -> set[str]:
    """The variables among them that hold a secret, or name a file that does."""
    fields = settings.model_fields.items()
    names = {environment_name(settings, name) for name, field in fields if is_secret(field)}
    return names | {name + FILE for name in names}


def secrets_of_others(process: str) -> frozenset[str]:
    """The variables of secrets that a process must not be given.

    Args:
        process: ``client``, ``service`` or ``worker``; any other needs none of ours.
    """
    return frozenset().union(*SECRETS.values()) - SECRETS.get(process, frozenset())


def hide_password(url: str) -> str:
    """The URL without its password."""
    parts = urlsplit(url)
    if "password" in parse_qs(parts.query):
        url = urlunsplit(parts._replace(query="..."))
    if parts.password is None:
        return url
    user = f"{parts.username or ''}:***@"
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(urlsplit(url)._replace(netloc=user + host))


def _marks(field: FieldInfo) -> list[str]:
    optional = [note for part in get_args(field.annotation) for note in get_args(part)[1:]]
    return [note for note in (*field.metadata, *optional) if isinstance(note, str)]


def _unknown(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name.upper(), sorted(known), n=1, cutoff=0.75)
    return f"{name} is no setting" + (f", did you mean {near[0]}?" if near else "")


def _is_link(name: str, value: str) -> bool:
    return bool(LINK.fullmatch(name) or LINK_ADDRESS.fullmatch(value))
