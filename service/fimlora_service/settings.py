"""The only file that reads the environment."""

import base64
import binascii

from pydantic import Field, SecretStr, field_validator

from fimlora_contract.webhooks import origin_of
from fimlora_jobs.attempts import REAPER_INTERVAL_S
from fimlora_jobs.settings import Folder, ProcessSettings
from fimlora_service.addresses import address_of, host_patterns, networks, page_origins

MIB = 1 << 20
# A word, because a variable that is empty counts as not set.
NO_RATE = "none"


class Settings(ProcessSettings):
    """Configuration of the API process, from ``FIMLORA_*`` and names others share."""

    host: str = Field(default="127.0.0.1", description="Address the API listens on.")
    port: int = Field(
        default=8000, ge=0, le=65_535, description="Port of the API; 0 for any free one."
    )
    allowed_hosts: str = Field(
        default="",
        description="Names the service is called by besides localhost and its own addresses, "
        "such as fimlora.example.com or *.example.com, separated by commas.",
    )
    allowed_origins: str = Field(
        default="",
        description="Origins whose pages may use the service, such as https://ui.example.com, "
        "separated by commas; empty for none.",
    )
    trusted_proxies: str = Field(
        default="",
        description="Addresses and networks of proxies whose X-Forwarded-For is believed, "
        "separated by commas; empty for none.",
    )
    admin_key: SecretStr | None = Field(
        default=None,
        min_length=24,
        description="An API key of the operator with every scope, beside those on record.",
    )
    rate_limit: str = Field(
        default="600/minute",
        description="How often one API key may ask, such as 600/minute; none for no limit. "
        "Nothing is limited before the first key is made.",
    )
    submit_rate_limit: str = Field(
        default="120/minute",
        description="How often one API key may submit, upload or pin; none for no limit.",
    )
    max_keys_per_tenant: int = Field(
        default=100, ge=0, description="API keys of one tenant; 0 for no limit."
    )
    max_stored_bytes_per_tenant: int = Field(
        default=0,
        ge=0,
        description="Uploads and adapters kept for one tenant; 0 for no limit.",
    )
    max_body_bytes: int = Field(default=8 * MIB, gt=0, description="Limit of a JSON body.")
    max_upload_bytes: int = Field(
        default=512 * MIB, gt=0, description="Limit of an uploaded dataset or adapter."
    )
    store_dir: Folder | None = Field(
        default=None,
        description="Where the folder of the store's append-only file is mounted here, if elsewhere "
        "than in the store's own container: an answer then waits milliseconds for the disk, and "
        "else about a second.",
    )
    min_free_bytes: int = Field(
        default=256 * MIB,
        ge=0,
        description="Nothing is accepted while the data folder's disk has less free space.",
    )
    hub_timeout_s: float = Field(
        default=10.0, gt=0, description="How long an answer of the hub is waited for."
    )
    reaper_interval_s: float = Field(
        default=REAPER_INTERVAL_S, gt=0, description="Between looks for orphaned jobs."
    )
    max_connections: int = Field(
        default=1000,
        gt=0,
        description="Open connections; beyond these the one that keeps us waiting longest "
        "gives way to a new one.",
    )
    max_waiting_per_client: int = Field(
        default=64,
        gt=0,
        description="Long polls and streams of events at once of one tenant, without keys of "
        "one address.",
    )
    request_timeout_s: float = Field(
        default=15.0,
        gt=0,
        description="How long the head of a request is waited for; its body, and that an answer "
        "is read, a second longer for every KiB.",
    )
    max_open_jobs: int = Field(
        default=10_000,
        ge=0,
        description="Jobs that have not ended beyond which no more are taken; 0 for no limit.",
    )
    max_open_jobs_per_tenant: int = Field(
        default=0, ge=0, description="The same for one tenant; 0 for no limit."
    )
    max_calibration_tokens: int = Field(
        default=64 * MIB,
        ge=0,
        description="Tokens that a request may send through a model: batches x examples x length, "
        "in each part of it; 0 for no limit.",
    )
    job_retention_days: float = Field(
        default=90, gt=0, description="How long the record of a job is kept at least."
    )
    webhook_hosts: str = Field(
        default="", description="Hosts that webhooks may call, separated by commas."
    )
    webhook_secret: SecretStr | None = Field(
        default=None, description="What webhooks are signed with."
    )
    webhook_old_secret: SecretStr | None = Field(
        default=None, description="The secret before it: webhooks are signed with both."
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

    @field_validator("rate_limit", "submit_rate_limit")
    @classmethod
    def _rates_are_rates(cls, rate: str) -> str:
        return check_rate(rate)

    @field_validator("webhook_hosts")
    @classmethod
    def _hosts_are_origins(cls, hosts: str) -> str:
        listed_origins(hosts)
        return hosts

    @field_validator("allowed_hosts")
    @classmethod
    def _hosts_are_patterns(cls, hosts: str) -> str:
        host_patterns(hosts)
        return hosts

    @field_validator("allowed_origins")
    @classmethod
    def _origins_are_origins(cls, origins: str) -> str:
        page_origins(origins)
        return origins

    @field_validator("trusted_proxies")
    @classmethod
    def _proxies_are_networks(cls, proxies: str) -> str:
        networks(proxies)
        return proxies

    @field_validator("webhook_secret", "webhook_old_secret")
    @classmethod
    def _secret_is_a_key(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret:
            key_of(secret.get_secret_value())
        return secret

    @property
    def rates(self) -> dict[str, str]:
        """How often a key may be used, by what for; without what is not limited."""
        rates = {"requests": self.rate_limit, "submissions": self.submit_rate_limit}
        return {name: rate for name, rate in rates.items() if rate != NO_RATE}

    @property
    def host_patterns(self) -> tuple[str, ...]:
        """Names the service is called by, the one it is bound to among them."""
        own = () if address_of(self.host) else (self.host,)
        return host_patterns(self.allowed_hosts) + own

    @property
    def page_origins(self) -> frozenset[str]:
        """Whose pages may use the service."""
        return page_origins(self.allowed_origins)

    @property
    def proxies(self) -> tuple[str, ...]:
        """Whose account of a peer is believed."""
        return networks(self.trusted_proxies)

    @property
    def webhook_origins(self) -> frozenset[str]:
        """Whom webhooks may call."""
        return frozenset(listed_origins(self.webhook_hosts))

    @property
    def webhook_near_origins(self) -> frozenset[str]:
        """Who of them may lie in the operator's own network."""
        listed = listed_origins(self.webhook_hosts)
        return frozenset(origin for origin, is_near in listed.items() if is_near)

    @property
    def webhook_keys(self) -> tuple[bytes, ...]:
        """What webhooks are signed with, the newest first."""
        secrets = filter(None, (self.webhook_secret, self.webhook_old_secret))
        return tuple(key_of(secret.get_secret_value()) for secret in secrets)


def listed_origins(hosts: str) -> dict[str, bool]:
    """What FIMLORA_WEBHOOK_HOSTS allows: ``host``, ``host:port``, or ``http://host:port``.

    Returns:
        Each origin, and whether it is listed with its port.

    Raises:
        ValueError: An entry is none of these.
    """
    origins: dict[str, bool] = {}
    for entry in filter(None, (part.strip() for part in hosts.split(","))):
        url = entry if "://" in entry else f"https://{entry}"
        origin = origin_of(url)
        if origin is None or url.count("/") > 2:
            raise ValueError(
                f"FIMLORA_WEBHOOK_HOSTS has {entry!r}; allowed are host, host:port and "
                "http://host:port, separated by commas"
            )
        has_port = ":" in url.partition("://")[2]
        origins[origin] = origins.get(origin, False) or has_port
    return origins


def key_of(secret: str) -> bytes:
    """The key of a secret: what follows ``whsec_`` in base64, or the text itself.

    Raises:
        ValueError: It is no base64; the message does not repeat it.
    """
    if secret.startswith("whsec_"):
        try:
            return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except binascii.Error as error:
            raise ValueError("it is not base64 after whsec_") from error
    return secret.encode()


def check_rate(text: str) -> str:
    """See that a rate is one, such as ``600/minute``, or ``none`` for no limit.

    Raises:
        ValueError: It is none.
    """
    from limits import parse

    try:
        is_sound = text == NO_RATE or parse(text).amount > 0
    except ValueError:
        is_sound = False
    if not is_sound:
        raise ValueError(
            f"{text!r} is no rate; give a number and a time, such as 600/minute, or "
            f"{NO_RATE} for no limit"
        )
    return text
