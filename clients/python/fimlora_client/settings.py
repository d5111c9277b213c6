"""The client's settings: the only place that reads the environment."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from fimlora_client.errors import InvalidSettings
from fimlora_contract import environment
from fimlora_contract.environment import (
    Address,
    Secret,
    environment_name,
    is_secret,
    read_secret,
)
from fimlora_contract.settings_shown import SettingShown, show_settings

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_DATA_DIR = ".fimlora"


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


def read_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the environment; a variable that is empty counts as not set.

    Raises:
        InvalidSettings: A value is wrong, or the file of a secret cannot be read.
    """
    env = os.environ if environ is None else environ
    try:
        return Settings.model_validate(dict(_given(env)))
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
    return show_settings(settings, os.environ)


def wants_plain_output(environ: Mapping[str, str] | None = None) -> bool:
    """Whether what is printed is to be text alone, without colours and moving lines.

    So say NO_COLOR, CI and a terminal that calls itself dumb.
    """
    env = os.environ if environ is None else environ
    is_ci = env.get("CI", "").lower() not in {"", "0", "false"}
    return is_ci or bool(env.get("NO_COLOR")) or env.get("TERM") == "dumb"


def _given(env: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for field_name, field in Settings.model_fields.items():
        name = environment_name(Settings, field_name)
        value = read_secret(env, name) if is_secret(field) else env.get(name)
        if value:
            yield name, value
