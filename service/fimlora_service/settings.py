"""The only file that reads the environment."""

import base64
import binascii
from pathlib import Path

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from fimlora_contract.webhooks import origin_of
from fimlora_jobs.attempts import REAPER_INTERVAL_S

MIB = 1 << 20


class Settings(BaseSettings):
    """Configuration of the API process, from ``FIMLORA_*`` and three names others share."""

    model_config = SettingsConfigDict(
        env_prefix="FIMLORA_", frozen=True, populate_by_name=True, extra="ignore"
    )

    redis_url: str = Field(default="redis://localhost:6379/0", validation_alias="REDIS_URL")
    hub_endpoint: str = Field(default="https://huggingface.co", validation_alias="HF_ENDPOINT")
    hub_token: SecretStr | None = Field(default=None, validation_alias="HF_TOKEN")
    data_dir: Path = Path(".fimlora")
    artifacts_url: str = Field(
        default="", description="Where results are kept, for example s3://bucket/prefix."
    )
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65_535)
    log_level: str = "INFO"
    max_body_bytes: int = Field(default=8 * MIB, gt=0)
    max_upload_bytes: int = Field(default=512 * MIB, gt=0)
    max_calibration_tokens: int = Field(
        default=64 * MIB,
        ge=0,
        description="Tokens that a request may send through a model: batches x examples x length, "
        "in each part of it; 0 for no limit.",
    )
    hub_timeout_s: float = Field(default=10.0, gt=0)
    reaper_interval_s: float = Field(default=REAPER_INTERVAL_S, gt=0)
    job_retention_days: float = Field(
        default=90, gt=0, description="How long the record of a job is kept at least."
    )
    webhook_hosts: str = Field(
        default="", description="Hosts that webhooks may call, separated by commas."
    )
    webhook_secret: SecretStr | None = Field(
        default=None, description="What webhooks are signed with."
    )
    webhook_interval_s: float = Field(
        default=1.0, gt=0, description="Between looks into the outbox."
    )
    cache_max_bytes: int = Field(
        default=0, ge=0, description="Results beyond this size are evicted; 0 for no limit."
    )
    cache_max_age_days: float = Field(
        default=0, ge=0, description="Results unused for so long are evicted; 0 for no limit."
    )
    poll_interval_s: float = Field(
        default=0.2, gt=0, description="Between looks of a long poll."
    )
    keep_alive_s: float = Field(
        default=15.0, gt=0, description="Between comments of a silent stream."
    )

    @field_validator("webhook_hosts")
    @classmethod
    def _hosts_are_origins(cls, hosts: str) -> str:
        allowed_origins(hosts)
        return hosts

    @field_validator("webhook_secret")
    @classmethod
    def _secret_is_a_key(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret:
            key_of(secret.get_secret_value())
        return secret

    @property
    def webhook_origins(self) -> frozenset[str]:
        """Whom webhooks may call."""
        return allowed_origins(self.webhook_hosts)

    @property
    def webhook_key(self) -> bytes | None:
        """What webhooks are signed with."""
        secret = self.webhook_secret
        return key_of(secret.get_secret_value()) if secret else None


def allowed_origins(hosts: str) -> frozenset[str]:
    """What FIMLORA_WEBHOOK_HOSTS allows: ``host``, ``host:port``, or ``http://host:port``.

    Raises:
        ValueError: An entry is none of these.
    """
    origins = set()
    for entry in filter(None, (part.strip() for part in hosts.split(","))):
        url = entry if "://" in entry else f"https://{entry}"
        origin = origin_of(url)
        if origin is None or url.count("/") > 2:
            raise ValueError(
                f"FIMLORA_WEBHOOK_HOSTS has {entry!r}; allowed are host, host:port and "
                "http://host:port, separated by commas"
            )
        origins.add(origin)
    return frozenset(origins)


def key_of(secret: str) -> bytes:
    """The key of a secret: what follows ``whsec_`` in base64, or the text itself.

    Raises:
        ValueError: It is no base64; the message does not repeat it.
    """
    if secret.startswith("whsec_"):
        try:
            return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except binascii.Error as error:
            raise ValueError("FIMLORA_WEBHOOK_SECRET is not base64 after whsec_") from error
    return secret.encode()
