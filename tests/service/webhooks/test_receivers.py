"""Where a receiver may lie: what a name stands for is looked up once, checked, and called."""

import asyncio
import ipaddress
import ssl
import subprocess
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from fimlora_service.webhooks.posting import NoAnswer, Poster
from fimlora_service.webhooks.receivers import AddressNotAllowed, Receivers
from support.receiver import Receiver

FAR = "https://hooks.example:443"
NEAR = "https://hooks.example:8443"
NOWHERE = [
    "169.254.169.254", "fe80::1", "fe80::1%eth0", "0.0.0.0", "::", "224.0.0.1", "ff02::1",
    "255.255.255.255", "240.0.0.1", "100.100.100.200", "192.0.0.192", "fd00:ec2::254",
    "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::", "::169.254.169.254",
    "fec0::1",
]  # fmt: skip
PRIVATE = [
    "127.0.0.1", "127.8.8.8", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "::1",
    "fc00::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "::10.0.0.1",
]  # fmt: skip
PUBLIC = ["93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946", "::ffff:8.8.8.8"]
RECEIVERS = Receivers(frozenset({FAR, NEAR}), frozenset({NEAR}))


@pytest.mark.parametrize("address", PUBLIC)
@pytest.mark.parametrize("origin", [FAR, NEAR])
def test_public_addresses_may_be_called(address, origin):
    """By every entry."""
    RECEIVERS.check_address(address, origin=origin)


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_only_if_the_port_is_listed(address):
    """The operator meant a machine of his own; however the address is written."""
    RECEIVERS.check_address(address, origin=NEAR)
    with pytest.raises(AddressNotAllowed):
        RECEIVERS.check_address(address, origin=FAR)


@pytest.mark.parametrize("address", NOWHERE)
@pytest.mark.parametrize("origin", [FAR, NEAR])
def test_metadata_and_groups_never(address, origin):
    """No name that stands for them is called."""
    with pytest.raises(AddressNotAllowed):
        RECEIVERS.check_address(address, origin=origin)


def test_an_address_that_is_listed_itself_is_meant():
    """An operator who writes it wants it."""
    origin = "http://169.254.10.1:8080"
    listed = Receivers(frozenset({origin}), frozenset({origin}))

    listed.check_address("169.254.10.1", origin=origin)
    with pytest.raises(AddressNotAllowed):
        listed.check_address("169.254.10.2", origin=origin)


def test_what_may_not_be_called_is_in_no_network_of_the_internet():
    """Against the standard library's own lists, over a sample of every /8 and of IPv6."""
    for first in range(256):
        address = ipaddress.ip_address((first << 24) + (1 << 16) + 1)
        try:
            RECEIVERS.check_address(str(address), origin=FAR)
        except AddressNotAllowed:
            assert not address.is_global or address.is_multicast
        else:
            assert address.is_global
            assert not address.is_multicast


def posted(url: str, receivers: Receivers, **options) -> int:
    return asyncio.run(Poster(receivers, **options).post(url, b"{}", {}))


def port_of(receiver: Receiver) -> str:
    return receiver.url.rpartition(":")[2]


def test_what_was_checked_is_what_is_connected_to(receiver: Receiver):
    """One lookup: the second, which would say something else, never happens."""
    origin = f"http://hooks.example:{port_of(receiver)}"
    answers = iter([["127.0.0.1"], ["169.254.169.254"]])
    near = Receivers(frozenset({origin}), frozenset({origin}))

    assert posted(f"{origin}/x?y=z", near, look_up=lambda *_: next(answers)) == 200

    [(path, headers, _)] = receiver.got
    assert path == "/x?y=z"
    assert headers["Host"] == f"hooks.example:{port_of(receiver)}"


@pytest.mark.parametrize("found", [["127.0.0.1"], ["93.184.216.34", "127.0.0.1"]])
def test_a_name_that_leads_inside_is_not_called(receiver: Receiver, found):
    """Also when only one of its addresses does."""
    origin = f"http://hooks.example:{port_of(receiver)}"

    with pytest.raises(NoAnswer, match="may not be called"):
        posted(f"{origin}/", Receivers(frozenset({origin})), look_up=lambda *_: found)
    assert receiver.got == []


def test_the_next_address_is_tried_if_one_is_not_there(receiver: Receiver):
    """As a browser would."""
    origin = f"http://hooks.example:{port_of(receiver)}"
    near = Receivers(frozenset({origin}), frozenset({origin}))

    # Nothing listens on the first: the receiver has the other address only.
    assert posted(f"{origin}/", near, look_up=lambda *_: ["127.0.0.9", "127.0.0.1"]) == 200


def test_a_receiver_proves_its_name_and_not_its_address(receiver: Receiver, tmp_path: Path):
    """Over TLS the certificate is of the name in the address that was given."""
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 "
        "-subj /CN=x -addext subjectAltName=DNS:hooks.example -keyout k.pem -out c.pem"
    )
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(tmp_path / "c.pem", tmp_path / "k.pem")
    trusted = ssl.create_default_context(cafile=tmp_path / "c.pem")
    handler = type("Handler", (receiver.handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.socket = ours.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        outcomes = []
        for name in ("hooks.example", "other.example"):
            origin = f"https://{name}:{server.server_address[1]}"
            near = Receivers(frozenset({origin}), frozenset({origin}))
            try:
                outcomes.append(
                    posted(f"{origin}/", near, look_up=lambda *_: ["127.0.0.1"], tls=trusted)
                )
            except NoAnswer as error:
                outcomes.append(str(error))
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

    assert outcomes[0] == 200
    assert outcomes[1] != 200
    assert len(receiver.got) == 1
