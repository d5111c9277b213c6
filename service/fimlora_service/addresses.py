"""Who a host, a peer or an origin is: names and addresses taken apart in one way for all checks."""

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

DEFAULT_PORTS = {"http": 80, "https": 443}
# A bracketed IPv6 address, or a name or IPv4 address that may end in the dot of the DNS root.
_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9_.-]+?)\.?)(?::([0-9]{0,5}))?")
_PATTERN = re.compile(r"[A-Za-z0-9*_][A-Za-z0-9*_.-]*")
_ORIGIN = re.compile(r"(https?)://([^/?#@]+)")


@dataclass(frozen=True, slots=True)
class Authority:
    """Host and port as a header names them.

    Attributes:
        host: The name in lower case, or the address without brackets.
        port: The port, if it is named.
    """

    host: str
    port: int | None


def authority_of(text: str) -> Authority | None:
    """Take ``host:port`` apart; ``None`` if it is none, or has a user name in front."""
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        return None
    in_brackets, name, port = match.groups()
    if in_brackets and address_of(in_brackets) is None:
        return None
    number = int(port) if port else None
    return Authority((in_brackets or name).lower(), number) if (number or 0) < 65_536 else None


def address_of(text: str) -> Address | None:
    """The address that a text spells, an IPv4 address mapped into IPv6 as what it is."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


@lru_cache(maxsize=1024)
def is_loopback(text: str) -> bool:
    """Whether a text spells an address of this machine alone."""
    address = address_of(text)
    return address is not None and address.is_loopback


def web_origin(text: str) -> tuple[str, Authority] | None:
    """Scheme and place of a web origin; ``None`` if it is none, such as ``null``."""
    match = _ORIGIN.fullmatch(text.lower())
    authority = authority_of(match[2]) if match else None
    if match is None or authority is None:
        return None
    port = authority.port if authority.port is not None else DEFAULT_PORTS[match[1]]
    return match[1], Authority(authority.host, port)


def host_patterns(text: str) -> tuple[str, ...]:
    """What FIMLORA_ALLOWED_HOSTS names: ``a.example``, ``*.b.example``, an address, or ``*``.

    Raises:
        ValueError: An entry is none of these.
    """
    entries = entries_of(text)
    for entry in entries:
        bare = entry.removeprefix("[").removesuffix("]")
        if address_of(bare) is None and not _PATTERN.fullmatch(entry):
            raise ValueError(
                f"FIMLORA_ALLOWED_HOSTS has {entry!r}; allowed are names without port, such as "
                "fimlora.example.com or *.example.com, and addresses, separated by commas"
            )
    return entries


def page_origins(text: str) -> frozenset[str]:
    """What FIMLORA_ALLOWED_ORIGINS names, as browsers spell it.

    Raises:
        ValueError: An entry is no origin.
    """
    return frozenset(map(_page_origin, entries_of(text)))


def _page_origin(entry: str) -> str:
    origin = web_origin(entry)
    if origin is None:
        raise ValueError(
            f"FIMLORA_ALLOWED_ORIGINS has {entry!r}; allowed are origins without path, such as "
            "https://ui.example.com or http://localhost:3000, separated by commas"
        )
    scheme, authority = origin
    host = f"[{authority.host}]" if ":" in authority.host else authority.host
    is_default = authority.port == DEFAULT_PORTS[scheme]
    return f"{scheme}://{host}" if is_default else f"{scheme}://{host}:{authority.port}"


def networks(text: str) -> tuple[str, ...]:
    """What FIMLORA_TRUSTED_PROXIES names: addresses and networks.

    Raises:
        ValueError: An entry is neither; all addresses at once are no choice, as then anybody
            could claim to be anyone.
    """
    entries = entries_of(text)
    for entry in entries:
        try:
            network = ipaddress.ip_network(entry)
        except ValueError:
            network = None
        if network is None or network.prefixlen == 0:
            raise ValueError(
                f"FIMLORA_TRUSTED_PROXIES has {entry!r}; allowed are addresses and networks, such "
                "as 10.0.0.2 or 10.1.0.0/16, separated by commas"
            )
    return entries


def entries_of(text: str) -> tuple[str, ...]:
    """The entries of a list that is separated by commas."""
    return tuple(filter(None, (part.strip() for part in text.split(","))))
