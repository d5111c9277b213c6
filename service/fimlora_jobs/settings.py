"""What the settings of service and worker have in common, and how they are read."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import SettingsError as SourceError
from redis.connection import parse_url

from fimlora_contract.environment import (
    PREFIX,
    Address,
    SettingsError,
    check_names,
    environment_name,
    is_link_address,
    is_secret,
    read_secret,
)
from fimlora_contract.settings_shown import show_settings
from fimlora_jobs.allow_lists import Allowed, AllowList
from fimlora_jobs.logs import LogFormat
from fimlora_jobs.telemetry import check_installed

Folder = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]
LogLevel = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR"],
    BeforeValidator(lambda level: level.upper() if isinstance(level, str) else level),
]
# No devices at all is a choice; any other setting that is empty is one that is not made.
WRONG_URL = (
    "REDIS_URL is no address of a server: it begins with redis://, rediss:// or unix://, "
    "as in redis://host:6379/0"
)
MAY_BE_EMPTY = frozenset({"CUDA_VISIBLE_DEVICES"})


class ProcessSettings(BaseSettings):
    """Settings that service and worker share; names have the prefix FIMLORA_ or an alias.

    A secret ``X`` may be given as ``X_FILE``, the path of a file that holds it. A variable
    that is empty counts as not set, and so does a port that Kubernetes made an address.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="ignore", populate_by_name=True
    )

    redis_url: Address = Field(
        default="redis://localhost:6379/0",
        validation_alias="REDIS_URL",
        description="Server of the queue and the job records (redis, rediss or unix URL).",
    )
    data_dir: Folder = Field(
        default=Path(".fimlora"),
        description="Folder of `fimlora up`, that service and workers share.",
    )
    artifacts_url: Address = Field(
        default="",
        description="Where results are kept, for example s3://bucket/prefix, the same in all "
        "processes; empty for the data folder.",
    )
    hub_endpoint: str = Field(
        default="https://huggingface.co",
        validation_alias="HF_ENDPOINT",
        description="Address of the model hub.",
    )
    hub_token: SecretStr | None = Field(
        default=None,
        validation_alias="HF_TOKEN",
        description="Token for gated models and datasets.",
    )
    allowed_models: str = Field(
        default="",
        description="Base models that may be used, such as meta-llama/* or local:*, separated "
        "by commas; empty for all.",
    )
    allowed_datasets: str = Field(
        default="",
        description="Datasets that may be used, such as org/*, local:*, upload or inline, "
        "separated by commas; empty for all.",
    )
    log_level: LogLevel = Field(
        default="INFO", description="What is written to standard error."
    )
    log_format: LogFormat = Field(
        default="auto", description="Log lines as json or text; auto is text on a terminal."
    )

    traces_endpoint: str = Field(
        default="",
        validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT",
        description="Where traces are sent (OTLP over HTTP); empty for nowhere. All OTEL_* "
        "variables of OpenTelemetry's SDK hold then.",
    )
    traces_off: bool = Field(
        default=False,
        validation_alias="OTEL_SDK_DISABLED",
        description="Send no traces, whatever else is set.",
    )

    @property
    def are_traces_wanted(self) -> bool:
        """Whether traces are to be made."""
        return bool(self.traces_endpoint) and not self.traces_off

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, url: str) -> str:
        try:
            parse_url(url)  # type: ignore[no-untyped-call]
        except ValueError:
            raise ValueError(WRONG_URL) from None
        return url

    @field_validator("allowed_models", "allowed_datasets")
    @classmethod
    def _patterns_match_something(cls, patterns: str, info: ValidationInfo) -> str:
        AllowList.of(patterns, setting=str(info.field_name))
        return patterns

    @property
    def allowed(self) -> Allowed:
        """The base models and datasets that may be used."""
        return Allowed.of(models=self.allowed_models, datasets=self.allowed_datasets)

    @classmethod
    def read(cls, **given: Any) -> Self:
        """The settings of this environment, where nothing else is given here.

        Raises:
            SettingsError: A name is unknown, a value wrong, or a secret's file unreadable.
        """
        check_names(os.environ)
        try:
            settings = cls(**given)
        except SourceError as error:
            if isinstance(error.__cause__, SettingsError):
                raise error.__cause__ from None
            raise SettingsError(str(error)) from error
        except ValidationError as error:
            raise SettingsError("; ".join(_sentences(cls, error))) from None
        if settings.are_traces_wanted:
            check_installed()
        return settings

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What is given in code goes before the environment and the files it names."""
        return init_settings, Environment(settings_cls)


def environment_help(settings: type[ProcessSettings]) -> str:
    """Every variable that settings are read from, for a command's help."""
    rows = [
        f"  {environment_name(settings, name):<36} {field.description} [{field.default}]"
        for name, field in settings.model_fields.items()
    ]
    return "\n".join(["environment:", *rows])


def settings_as_json(settings: ProcessSettings) -> str:
    """Every setting as it holds and where it comes from, without secrets."""
    return json.dumps([asdict(row) for row in show_settings(settings, os.environ)])


class Environment(EnvSettingsSource):
    """Environment variables, and the files that those of secrets name."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """A field's value; ``None`` when it is not set."""
        value, key, is_complex = super().get_field_value(field, field_name)
        name = environment_name(self.settings_cls, field_name)
        if is_secret(field):
            given = {key.upper(): text or "" for key, text in self.env_vars.items()}
            value = read_secret(given, name)
        if value == "" and name not in MAY_BE_EMPTY:
            value = None
        if value and is_link_address(name, value):
            value = None
        return value, key, is_complex


def _sentences(settings: type[ProcessSettings], error: ValidationError) -> Iterator[str]:
    names = {name: environment_name(settings, name) for name in settings.model_fields}
    for fault in error.errors():
        field_name = str(fault["loc"][0]).lower() if fault["loc"] else ""
        found = {**names, **{env.lower(): env for env in names.values()}}.get(field_name, "")
        message = fault["msg"].removeprefix("Value error, ")
        if not found or found in message:
            yield message
        elif any(
            env == found and is_secret(settings.model_fields[n]) for n, env in names.items()
        ):
            yield f"{found} cannot be used: {message}"
        else:
            yield f"{found}={str(fault['input'])[:80]!r} cannot be used: {message}"
