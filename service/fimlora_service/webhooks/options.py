"""What the operator says about webhooks: whom they may call, and how they are signed."""

import base64
import binascii

from fimlora_contract.webhooks import origin_of


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
