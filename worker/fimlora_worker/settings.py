"""What the worker reads from the environment; nothing else in this package does."""

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr

from fimlora_contract.environment import (
    FILE,
    environment_name,
    is_secret,
    secrets_of_others,
)
from fimlora_jobs.settings import ProcessSettings

GIB = 1 << 30


class Settings(ProcessSettings):
    """Settings of one worker, from ``FIMLORA_*`` and names others share."""

    storage_patience_s: float = Field(
        default=10.0, ge=0, description="How long a result waits for a storage that is away."
    )
    signing_key: SecretStr | None = Field(
        default=None,
        description="Private key, P-256 in PEM, that results are signed with; none if left out.",
    )
    worker_isolation: Literal["warm", "process"] = Field(
        default="warm",
        description="warm keeps models loaded; process starts anew for every job.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where models run."
    )
    torch_threads: int = Field(
        default=0,
        ge=0,
        description="Threads of a model on the CPU; 0 for as many as the cores it may use.",
    )
    model_cache_bytes: int = Field(
        default=16 * GIB,
        ge=0,
        description="Loaded models beyond this size are dropped, oldest first.",
    )
    job_deadline_s: float = Field(
        default=3 * 3600.0, gt=0, description="A job that takes longer fails with code timeout."
    )
    cancel_grace_s: float = Field(
        default=10.0,
        ge=0,
        description="Time a job gets to obey a cancel request before it is killed.",
    )
    stall_s: float = Field(
        default=3600.0, gt=0, description="A job without any progress for this long is killed."
    )
    recycle_after_jobs: int = Field(
        default=500, ge=1, description="The child process is replaced after so many jobs."
    )
    recycle_after_growth_bytes: int = Field(
        default=8 * GIB, ge=0, description="... or when its memory has grown by this much."
    )
    monitor_every_s: int = Field(
        default=5, ge=1, le=5, description="How often a running job's lease is renewed."
    )
    cuda_visible_devices: str = Field(
        default="0",
        validation_alias="cuda_visible_devices",
        description="The GPU of this worker.",
    )

    @property
    def models_dir(self) -> Path:
        """Registered local base models."""
        return self.data_dir / "models"

    @property
    def datasets_dir(self) -> Path:
        """Registered local datasets."""
        return self.data_dir / "datasets"

    @property
    def uploads_dir(self) -> Path:
        """Uploaded datasets, one folder each."""
        return self.data_dir / "uploads"

    @property
    def tmp_dir(self) -> Path:
        """Work folders of running attempts."""
        return self.data_dir / "tmp"

    @property
    def hub_dir(self) -> Path:
        """Cache of what was downloaded."""
        return self.data_dir / "hub"

    @property
    def digests_dir(self) -> Path:
        """Digests of large files, so that these are not read at every start."""
        return self.data_dir / "digests"

    def create_folders(self) -> None:
        """Create the folders that a worker writes to."""
        for folder in (self.tmp_dir, self.hub_dir):
            folder.mkdir(parents=True, exist_ok=True)

    def leave_working_folder(self) -> None:
        """Work in an empty folder: libraries look for ``namespace/name`` in the current one."""
        empty = self.tmp_dir / "empty"
        empty.mkdir(mode=0o555, parents=True, exist_ok=True)
        # Relative, it would mean another folder from here.
        os.environ[environment_name(Settings, "data_dir")] = str(self.data_dir)
        os.chdir(empty)

    @staticmethod
    def forget_secrets_of_others() -> None:
        """Take out of this process's environment what no worker needs, before others inherit it."""
        for name in secrets_of_others("worker"):
            os.environ.pop(name, None)

    def child_environment(self) -> dict[str, str]:
        """This process's environment, with these settings in it and no files of secrets."""
        fields = {name: environment_name(Settings, name) for name in Settings.model_fields}
        files = {
            env + FILE for name, env in fields.items() if is_secret(Settings.model_fields[name])
        }
        inherited = {name: text for name, text in os.environ.items() if name not in files}
        return inherited | {
            env: _as_text(value)
            for name, env in fields.items()
            if (value := getattr(self, name)) is not None
        }


def _as_text(value: object) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)
