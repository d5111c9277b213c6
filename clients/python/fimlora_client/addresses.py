"""Where the service is, as people write it: ``localhost:8000`` is ``http://localhost:8000``."""

import re
from urllib.parse import urlsplit

from fimlora_client.errors import InvalidSettings

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def base_url_of(text: str) -> str:
    """An address with its scheme and without a slash at its end; a path stays before every route.

    Raises:
        InvalidSettings: It is no address of a service.
    """
    given = text.strip()
    url = given if SCHEME.match(given) else f"http://{given.removeprefix('//')}"
    try:
        parts = urlsplit(url)
        is_usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_usable = False
    if not is_usable or re.search(r"\s", url) or parts.query or parts.fragment:
        raise _unusable("is no address of a service")
    if parts.scheme.lower() not in {"http", "https"}:
        raise _unusable("begins neither with http:// nor with https://")
    return url.rstrip("/")


def _unusable(why: str) -> InvalidSettings:
    # Not the address itself: it may hold a password.
    error = InvalidSettings(f"the address of the service (FIMLORA_URL or --url) {why}")
    error.next_step = "Write it as localhost:8000, http://HOST:PORT or https://HOST/PREFIX."
    return error
