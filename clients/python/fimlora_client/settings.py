"""The client's settings: the only place that reads the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_DATA_DIR = ".fimlora"


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the service is and where the embedded stack keeps its state.

    Attributes:
        url: Base URL of the service (``FIMLORA_URL``).
        api_key: Sent as a bearer token when set (``FIMLORA_API_KEY``).
        data_dir: State of the embedded stack (``FIMLORA_DATA_DIR``).
        redis_url: A Redis or Valkey server to use instead of an embedded one (``REDIS_URL``).
        runtime_dir: A short folder for sockets (``XDG_RUNTIME_DIR``), ``None`` when not set.
    """

    url: str
    api_key: str | None
    data_dir: Path
    redis_url: str | None
    runtime_dir: Path | None


def read_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the environment; a variable that is empty counts as not set."""
    env = {k: v for k, v in (os.environ if environ is None else environ).items() if v}
    runtime_dir = env.get("XDG_RUNTIME_DIR")
    return Settings(
        url=env.get("FIMLORA_URL", DEFAULT_URL),
        api_key=env.get("FIMLORA_API_KEY"),
        data_dir=Path(env.get("FIMLORA_DATA_DIR", DEFAULT_DATA_DIR)).expanduser(),
        redis_url=env.get("REDIS_URL"),
        runtime_dir=Path(runtime_dir) if runtime_dir else None,
    )
