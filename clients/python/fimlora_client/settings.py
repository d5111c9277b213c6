"""The client's settings: the only place that reads the environment and configuration files.

An option wins over the environment, that over the project's file, that over the user's, that
over the default.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from fimlora_client.config_files import ConfigFile, config_files
from fimlora_client.errors import InvalidSettings
from fimlora_contract import environment
from fimlora_contract.environment import (
    Address,
    Secret,
    environment_name,
    is_secret,
    read_secret,
)
from fimlora_contract.settings_shown import Origin, SettingShown, show_settings

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_DATA_DIR = ".fimlora"
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class Settings(BaseModel):
    """Where the service is and where the embedded stack keeps its state."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    url: Address = Field(
        default=DEFAULT_URL, validation_alias="FIMLORA_URL", description="Where the API is."
    )
    api_key: Secret | None = Field(
        default=None,
        validation_alias="FIMLORA_API_KEY",
        description="Key that requests are sent with.",
    )
    data_dir: Annotated[Path, AfterValidator(Path.expanduser)] = Field(
        default=Path(DEFAULT_DATA_DIR),
        validation_alias="FIMLORA_DATA_DIR",
        description="Folder of `fimlora up`, that service and workers share.",
    )
    redis_url: Address | None = Field(
        default=None,
        validation_alias="REDIS_URL",
        description="A Redis or Valkey server that `fimlora up` uses instead of its own.",
    )
    runtime_dir: Path | None = Field(
        default=None,
        validation_alias="XDG_RUNTIME_DIR",
        description="A short folder for the sockets of `fimlora up`.",
    )
    log_format: Literal["text", "json", "auto"] = Field(
        default="text",
        validation_alias="FIMLORA_LOG_FORMAT",
        description="Form of the log files of `fimlora up`.",
    )
    # By variable, where a configuration file has said it.
    _origins: dict[str, Origin] = PrivateAttr(default_factory=dict)

    @property
    def origins(self) -> Mapping[str, Origin]:
        """Whose file said what, by variable."""
        return self._origins

    def key_for(self, base_url: str | None) -> str | None:
        """The key to send to an address; ``None`` stands for the address of these settings.

        Raises:
            InvalidSettings: The address is only a project's word: whoever wrote its file
                would be sent the key.
        """
        is_of_project = self._origins.get("FIMLORA_URL") == "project file"
        if self.api_key and base_url is None and is_of_project and not _is_here(self.url):
            failure = InvalidSettings(
                f"the project's fimlora.toml names {self.url}, and a key is sent only to an "
                "address of your own"
            )
            failure.next_step = "If it is the right one, set FIMLORA_URL to it, or url in your own configuration."
            raise failure
        return self.api_key


@dataclass(frozen=True, slots=True)
class Default:
    """What a configuration file has an option of `fimlora calibrate` be."""

    value: Any
    origin: Origin
    path: Path


def read_settings(
    environ: Mapping[str, str] | None = None, *, folder: Path | None = None
) -> Settings:
    """Read environment and files; a variable that is empty counts as not set.

    Args:
        environ: The environment; that of the process if left out.
        folder: Where the search for the project's file begins; here if left out.

    Raises:
        InvalidSettings: A value is wrong, or the file of a secret cannot be read.
    """
    env = os.environ if environ is None else environ
    try:
        given = dict(_given(env))
        origins = dict(_add_files(given, _files(env, folder)))
        settings = Settings.model_validate(given)
        settings._origins = origins  # noqa: SLF001
        return settings
    except environment.SettingsError as error:
        raise InvalidSettings(str(error)) from error
    except ValidationError as error:
        faults = (
            f"{fault['loc'][0]} cannot be used: {fault['msg']}" for fault in error.errors()
        )
        raise InvalidSettings("; ".join(faults)) from None


def check_names(environ: Mapping[str, str] | None = None) -> None:
    """Refuse names of ours that nobody reads.

    Raises:
        InvalidSettings: There is one.
    """
    try:
        environment.check_names(os.environ if environ is None else environ)
    except environment.SettingsError as error:
        raise InvalidSettings(str(error)) from error


def shown_settings(settings: Settings) -> list[SettingShown]:
    """Every setting as it holds and where it comes from, without secrets."""
    shown = show_settings(settings, os.environ)
    return [replace(s, origin=settings.origins.get(s.name, s.origin)) for s in shown]


def read_defaults(
    environ: Mapping[str, str] | None = None, *, folder: Path | None = None
) -> dict[str, Default]:
    """What options of `fimlora calibrate` are by themselves, by option.

    Raises:
        InvalidSettings: A file cannot be used.
    """
    env = os.environ if environ is None else environ
    found: dict[str, Default] = {}
    for file in _files(env, folder):
        for name, value in file.calibrate.items():
            found.setdefault(name, Default(value, file.whose, file.path))
    return found


def wants_plain_output(environ: Mapping[str, str] | None = None) -> bool:
    """Whether what is printed is to be text alone, without colours and moving lines.

    So say NO_COLOR, CI and a terminal that calls itself dumb.
    """
    env = os.environ if environ is None else environ
    is_ci = env.get("CI", "").lower() not in {"", "0", "false"}
    return is_ci or bool(env.get("NO_COLOR")) or env.get("TERM") == "dumb"


def _files(env: Mapping[str, str], folder: Path | None) -> list[ConfigFile]:
    home = env.get("HOME")
    own = env.get("XDG_CONFIG_HOME") or (f"{home}/.config" if home else None)
    user_folder = Path(own) if own else Path("~/.config").expanduser()
    return list(config_files(folder=folder or _here(), user_folder=user_folder))


def _here() -> Path:
    try:
        return Path.cwd()
    except OSError:  # it has been deleted
        return Path("/")


def _add_files(
    given: dict[str, str], files: Iterable[ConfigFile]
) -> Iterator[tuple[str, Origin]]:
    """Add what files say and nothing stronger does; yields where it came from."""
    for file in files:
        for variable, value in file.variables.items():
            name = variable.removesuffix(environment.FILE)
            if name not in given:
                secret = variable != name
                found = read_secret({variable: value}, name) if secret else value
                given[name] = found or ""
                yield name, file.whose


def _is_here(url: str) -> bool:
    try:
        return urlsplit(url).hostname in LOOPBACK
    except ValueError:
        return False


def _given(env: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for field_name, field in Settings.model_fields.items():
        name = environment_name(Settings, field_name)
        value = read_secret(env, name) if is_secret(field) else env.get(name)
        if value:
            yield name, value
