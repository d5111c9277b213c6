"""Whom webhooks may call: origins that the operator has listed, and where these may lie.

A name is looked up once, at each try, and what it stands for is checked and then connected to:
a name that stands for another address a moment later changes nothing. An entry without a port is
a receiver on the internet. One with a port may lie in the operator's own network too. Addresses
of the link, where clouds keep their metadata, are called only if they are listed as such.
"""

import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
LookUp = Callable[[str, int], list[str]]
# Where clouds keep metadata besides the link's addresses.
METADATA = frozenset(
    map(ipaddress.ip_address, ("100.100.100.200", "192.0.0.192", "fd00:ec2::254"))
)
# Networks of IPv6 whose last 32 bits are an address of IPv4.
EMBEDDING = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("::/96"))


class AddressNotAllowed(Exception):
    """A name stands for an address that webhooks may not call."""


@dataclass(frozen=True, slots=True)
class Receivers:
    """Whom webhooks may call.

    Attributes:
        origins: All of them.
        near: Those that may lie in the operator's own network.
    """

    origins: frozenset[str] = field(default_factory=frozenset)
    near: frozenset[str] = field(default_factory=frozenset)

    def check_address(self, address: str, *, origin: str) -> None:
        """Refuse an address that a receiver of this origin may not have.

        Raises:
            AddressNotAllowed: It may not.
        """
        found = _plain(ipaddress.ip_address(address.partition("%")[0]))
        is_listed = origin.partition("://")[2].rpartition(":")[0] == address
        if origin in self.near and (is_listed or not _is_special(found)):
            return
        if _is_special(found) or not found.is_global:
            raise AddressNotAllowed(f"{origin} stands for an address that may not be called")


def _plain(address: IPAddress) -> IPAddress:
    """An address by which another one is written, as that one."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    inner = address.ipv4_mapped or address.sixtofour
    if not inner and int(address) > 1 and any(address in network for network in EMBEDDING):
        inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return inner or address


def _is_special(address: IPAddress) -> bool:
    """Whether no receiver can lie there: the link's own, a group's, nobody's."""
    return (
        address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or (address.is_reserved and not address.is_loopback)
        or (isinstance(address, ipaddress.IPv6Address) and address.is_site_local)
        or address in METADATA
    )


def look_up(host: str, port: int) -> list[str]:
    """All addresses of a name, in the order they are to be tried.

    Raises:
        OSError: It has none.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))
