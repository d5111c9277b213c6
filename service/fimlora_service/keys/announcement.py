"""What the service says of itself when it starts: whom it serves, and what to do about it."""

import logging
from contextlib import suppress

from redis.exceptions import RedisError

from fimlora_contract.service import Access
from fimlora_service.addresses import is_loopback
from fimlora_service.http.peers import FIRST_KEY
from fimlora_service.keys.ring import KeyRing

logger = logging.getLogger(__name__)


def access_of(ring: KeyRing) -> Access:
    """Who is served, as far as is known while the store is away."""
    with suppress(RedisError):
        return "this_machine" if ring.is_open else "api_keys"
    return "api_keys" if ring.is_closed else "this_machine"


def announce_access(ring: KeyRing, *, host: str) -> None:
    """Log who is served; that others are not, although they can connect, is worth a warning.

    Args:
        ring: The keys that are good.
        host: The address that the service is bound to.
    """
    access = access_of(ring)
    event = f"access.{access}"
    if access == "api_keys":
        logger.info(event, extra={"serves": "who has an API key"})
        return
    serves = "this machine only, as there are no API keys"
    if host == "localhost" or is_loopback(host):
        logger.info(event, extra={"serves": serves, "next": FIRST_KEY})
    else:
        text = f"listening on {host}, but others are refused until there is a key: {FIRST_KEY}"
        logger.warning(event, extra={"serves": serves, "next": text})
