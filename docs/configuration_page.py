"""The reference of the configuration, from the settings classes."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

INTRO = """# Configuration

Every variable that is read, from the settings classes themselves; made by `make docs`. `fimlora
config` shows what holds here and where it comes from, without secrets.

- A variable that is empty counts as not set; `CUDA_VISIBLE_DEVICES` alone may be empty.
- A secret or an address may come from a file, as Docker and Kubernetes hand secrets over: `X_FILE`
  names the file that holds `X`. Given both, or with an empty file, nothing starts.
- A `FIMLORA_` name that nobody reads is an error, and so is a value that cannot be used: one
  sentence on standard error and exit status 78.
- Client and commands also read `fimlora.toml`, here or in the nearest folder above, and
  `~/.config/fimlora/config.toml` (or below `XDG_CONFIG_HOME`): section `[service]` with `url`, and in the
  user's file `api_key_file`; section `[calibrate]` with defaults of that command's options, such as
  `budget = "8M"`. An option wins over a variable, that over the project's file, that over the user's.
  A key is never written into a file, and none is sent to an address that only a project's file names.
- Names that only `docker-compose.yml` reads are in [docker/README.md](../docker/README.md). Buckets
  are reached by the usual `AWS_*` variables.

| name | type | default | read by | means |
| --- | --- | --- | --- | --- |
"""
SIZES = (("GiB", 1 << 30), ("MiB", 1 << 20))


@dataclass
class Row:
    """One variable, and every process that reads it."""

    type: str
    default: str
    means: str
    readers: list[str] = field(default_factory=list)


def configuration_page() -> str:
    """A table of all variables, by name."""
    rows: dict[tuple[str, str], Row] = {}
    for reader, name, row in _rows():
        rows.setdefault((name, row.default), row).readers.append(reader)
    lines = (
        f"| `{name}` | {row.type} | {row.default} | {', '.join(row.readers)} | {row.means} |\n"
        for (name, _), row in sorted(rows.items())
    )
    return INTRO + "".join(lines)


def _rows() -> Iterator[tuple[str, str, Row]]:
    from fimlora_client.settings import Settings as Client
    from fimlora_contract.environment import FILE, environment_name, is_secret
    from fimlora_contract.settings_shown import shown, type_of
    from fimlora_service.settings import Settings as Service
    from fimlora_worker.settings import Settings as Worker

    processes: dict[str, Any] = {"client": Client, "service": Service, "worker": Worker}
    for reader, settings in processes.items():
        for field_name, info in settings.model_fields.items():
            name = environment_name(settings, field_name)
            kind = type_of(info) + (f", or `{name}{FILE}`" if is_secret(info) else "")
            default = _size(info.default) or shown(info, info.default) or "none"
            yield reader, name, Row(kind, default, info.description or "")


def _size(value: object) -> str:
    """A number of bytes in a unit that fits it exactly."""
    for unit, size in SIZES:
        if isinstance(value, int) and value >= size and value % size == 0:
            return f"{value} ({value // size} {unit})"
    return ""
