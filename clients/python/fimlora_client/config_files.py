"""Configuration files: one of the project, one of the user, in TOML.

A project's file comes with whatever is checked out, and may be anybody's. So it names no key,
and `fimlora_client.settings` sends none to an address that only such a file names.
"""

import difflib
import stat
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fimlora_client.errors import InvalidSettings

PROJECT_FILE, USER_FILE = "fimlora.toml", "fimlora/config.toml"
Whose = Literal["project file", "user file"]
# Section and key, and the variable that means the same.
VARIABLES = {
    ("service", "url"): "FIMLORA_URL",
    ("service", "api_key_file"): "FIMLORA_API_KEY_FILE",
}
SECTIONS = ("service", "calibrate")
PLAIN = (str, int, float, bool)


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """What a file says.

    Attributes:
        path: The file.
        whose: Whose it is.
        variables: Values by the variable that means the same.
        calibrate: Defaults of options of `fimlora calibrate`.
    """

    path: Path
    whose: Whose
    variables: Mapping[str, str]
    calibrate: Mapping[str, Any]


def config_files(*, folder: Path, user_folder: Path) -> Iterator[ConfigFile]:
    """The files that hold in a folder, the stronger first.

    Args:
        folder: Where the search for a project's file begins; it goes upward.
        user_folder: Where the user's configuration is.

    Raises:
        InvalidSettings: A file cannot be read, or says something that nobody understands.
    """
    if project := find_project_file(folder):
        yield _read(project, "project file")
    user = user_folder / USER_FILE
    if user.is_file():
        yield _read(user, "user file")


def find_project_file(folder: Path) -> Path | None:
    """The nearest file upward; none from a folder above that anybody may write to."""
    for place in (folder, *folder.parents):
        try:
            if place != folder and place.stat().st_mode & stat.S_IWOTH:
                return None
            if (place / PROJECT_FILE).is_file():
                return place / PROJECT_FILE
        except OSError:
            return None
    return None


def unknown_key(key: str, known: list[str]) -> str:
    """That a key is none, and which one was meant."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    return f"{key} is no key here; {meant}"


def _read(path: Path, whose: Whose) -> ConfigFile:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidSettings(f"{path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidSettings(f"{path} is no TOML: {error}") from error
    for name, section in content.items():
        if name not in SECTIONS:
            raise InvalidSettings(f"{path}: {unknown_key(name, list(SECTIONS))}")
        if not isinstance(section, dict):
            raise InvalidSettings(f"{path}: {name} is a section, written [{name}]")
    return ConfigFile(
        path,
        whose,
        dict(_variables(path, whose, content.get("service", {}))),
        dict(_defaults(path, content.get("calibrate", {}))),
    )


def _variables(
    path: Path, whose: Whose, section: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    known = [key for _, key in VARIABLES]
    for key, value in section.items():
        if key == "api_key":
            raise InvalidSettings(
                f"{path}: service.api_key: a key is kept in a file of its own; name that by "
                f"api_key_file in the user's file, or set FIMLORA_API_KEY"
            )
        if key not in known:
            raise InvalidSettings(f"{path}: service.{unknown_key(key, known)}")
        if not isinstance(value, str) or not value:
            raise InvalidSettings(f"{path}: service.{key} is a text")
        if key == "api_key_file" and whose == "project file":
            raise InvalidSettings(
                f"{path}: service.api_key_file: only the user's own file may name a key, as a "
                "project's may be anybody's"
            )
        is_path = key.endswith("_file")
        found = str(path.parent / Path(value).expanduser()) if is_path else value
        yield VARIABLES["service", key], found


def _defaults(path: Path, section: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(each, PLAIN) for each in values):
            raise InvalidSettings(
                f"{path}: calibrate.{key} is a text, a number, true or false, or a list of texts"
            )
        yield key.replace("-", "_"), value
