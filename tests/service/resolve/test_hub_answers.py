"""Bounds on what a hub may answer."""

import httpx2
import pytest

from fimlora_service.resolve.hub_answers import Bounded, bounded_client, check_redirect, is_near
from support.hostile_hub import hostile_hub

PUBLIC = "https://hub.example/x"


class Body(httpx2.SyncByteStream):
    def __init__(self, *chunks: bytes) -> None:
        self.chunks = chunks
        self.is_closed = False

    def __iter__(self):
        yield from self.chunks

    def close(self) -> None:
        self.is_closed = True


def test_a_body_is_read_to_its_bound_and_no_further():
    """What fits is passed on as it comes."""
    fits = Bounded(Body(b"ab", b"cd"), max_bytes=4, max_seconds=60)
    over = Bounded(Body(b"ab", b"cde"), max_bytes=4, max_seconds=60)

    assert b"".join(fits) == b"abcd"
    with pytest.raises(httpx2.HTTPError, match="over 4 bytes"):
        list(over)


def test_a_body_that_takes_too_long_is_given_up():
    """A drop now and then keeps no thread for ever; the connection is let go."""
    body = Body(b"a", b"b")
    slow = Bounded(body, max_bytes=100, max_seconds=-1)

    with pytest.raises(httpx2.HTTPError, match="too long"):
        list(slow)
    slow.close()
    assert body.is_closed


def test_a_part_is_no_longer_than_was_asked_for(hub):
    """By the hub library's own client, and of a hub that always sends everything."""
    hub.add("org/m", {"x.bin": b"0123456789"})
    part = {"Range": "bytes=2-4"}
    with bounded_client() as client, hostile_hub() as other:
        other.body = b"0123456789"

        assert client.get(f"{hub.url}/org/m/resolve/main/x.bin", headers=part).content == b"234"
        assert client.get(other.url).content == b"0123456789"
        with pytest.raises(httpx2.HTTPError, match="over 3 bytes"):
            client.get(other.url, headers=part)


@pytest.mark.parametrize(
    "location",
    [
        "http://hub.example/x", "http://169.254.169.254/latest", "https://127.0.0.1/",
        "https://localhost:8000/", "https://[::1]/", "https://[::ffff:10.0.0.1]/",
        "https://192.168.0.1/", "https://[fd00:ec2::254]/", "file:///etc/passwd", "ftp://x/",
    ],
)  # fmt: skip
def test_a_public_hub_leads_nowhere_inside(location):
    """Neither to this machine or its network, nor out of TLS."""
    with pytest.raises(httpx2.HTTPError, match="redirects to"):
        check_redirect(httpx2.URL(PUBLIC), location)


@pytest.mark.parametrize(
    ("asked", "location"),
    [
        (PUBLIC, "/api/models/x"),
        (PUBLIC, "https://cdn.example/x?signature=y"),
        ("http://10.0.0.2/x", "http://10.0.0.3/x"),
        ("http://10.0.0.2/x", "https://cdn.example/x"),
        ("http://hub.example/x", "https://hub.example/x"),
    ],
)
def test_a_hub_may_lead_to_where_its_files_are(asked, location):
    """Elsewhere on the net, and from one inside to another inside."""
    check_redirect(httpx2.URL(asked), location)


def test_near_is_what_an_address_says():
    """A name is not looked up."""
    assert is_near("10.1.2.3")
    assert is_near("localhost")
    assert not is_near("hub.example")
    assert not is_near("1.1.1.1")
