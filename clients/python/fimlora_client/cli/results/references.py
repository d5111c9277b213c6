"""Results by whatever name they go: a job, a digest, a pin, or files of this machine."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import typer
from pydantic import ValidationError

from fimlora_client.blocking.client import Client
from fimlora_client.errors import InvalidFile
from fimlora_contract.field_errors import message_of
from fimlora_contract.rank_maps import RankMap
from fimlora_contract.rank_patterns import RankPattern
from fimlora_contract.references import NAME
from fimlora_contract.requests import DIGEST

FILE = "rank_map.json"
MAX_BYTES = 1 << 28  # of a rank map; one of 100,000 modules has some 60 MB
FORMS = (
    "a job (job_...), a digest (sha256:...), a pin (NAME:TAG) or a file or folder (./adapter)"
)


@dataclass(frozen=True, slots=True)
class NamedMap:
    """A rank map, and what it was asked for by.

    Attributes:
        name: As it was given.
        digest: Content address of the result; ``None`` of a file.
        rank_map: The map.
    """

    name: str
    digest: str | None
    rank_map: RankMap


def find_map(connect: Callable[[], Client], text: str) -> NamedMap:
    """The rank map of a result; a file needs no service.

    Raises:
        BadParameter: The text is none of the forms.
        InvalidFile: A file is no rank map.
    """
    path, pin = Path(text).expanduser(), _pin_of(text)
    if text.startswith((".", "/", "~")) or path.name.endswith(".json"):
        return NamedMap(text, None, _read(path))
    if pin and path.exists():
        raise typer.BadParameter(
            f"{text!r} may be a pin or what lies here: write {pin[0]}:{pin[1]} or ./{text}"
        )
    if path.exists():
        return NamedMap(text, None, _read(path))
    if re.match(DIGEST, text):
        return _fetched(text, connect().rank_patterns.retrieve(text).pattern)
    if pin:
        return _fetched(text, connect().rank_patterns.pinned(*pin).pattern)
    if text.startswith("job_"):
        result = connect().jobs.result(text)
        return NamedMap(text, result.digest, result.rank_map)
    raise typer.BadParameter(f"{text!r} is no result; give {FORMS}")


def _fetched(name: str, pattern: RankPattern) -> NamedMap:
    return NamedMap(name, pattern.digest, pattern.rank_map)


def _pin_of(text: str) -> tuple[str, str] | None:
    """Name and tag of ``NAME:TAG`` or ``NAME/TAG``."""
    name, sign, tag = text.partition(":" if ":" in text else "/")
    is_pin = sign and name != "sha256" and re.match(NAME, name) and re.match(NAME, tag)
    return (name, tag) if is_pin else None


def _read(path: Path) -> RankMap:
    """A rank map from a file, or from the adapter folder that holds it."""
    file = path / FILE if path.is_dir() else path
    try:
        with file.open("rb") as opened:
            text = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise InvalidFile(f"cannot read {file}: {error.strerror}") from error
    if len(text) > MAX_BYTES:
        raise InvalidFile(f"{file} has more than {MAX_BYTES >> 20} MiB, so it is no rank map")
    try:
        found = RankMap.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        message = message_of({**first, "loc": ("file", *first["loc"])})
        raise InvalidFile(f"{file} is no rank map: {place}: {message}") from error
    _check(file, found)
    return found


def _check(file: Path, found: RankMap) -> None:
    """Refuse what would give figures without meaning."""
    names = [module.name for module in found.modules]
    lacking = sorted({"ranks", "parameters"} - found.spent.keys())
    odd = next(
        (m for m in found.modules if m.rank < 0 or not 0 <= m.score < math.inf),
        None,
    )
    if lacking:
        raise InvalidFile(f"{file} is no rank map: spent lacks {', '.join(lacking)}")
    if len(set(names)) < len(names):
        raise InvalidFile(f"{file} is no rank map: it names a module twice")
    if odd:
        raise InvalidFile(
            f"{file} is no rank map: module {odd.name!r} has rank {odd.rank} and score "
            f"{odd.score}; both are numbers from 0 up"
        )
    if found.spent["ranks"] != sum(m.rank for m in found.modules):
        raise InvalidFile(
            f"{file} is no rank map: its ranks do not sum to what it says to spend"
        )
