"""Addresses of webhooks."""

import pytest

from fimlora_contract.webhooks import origin_of


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://hooks.example/a?b=c", "https://hooks.example:443"),
        ("https://HOOKS.Example", "https://hooks.example:443"),
        ("http://10.0.0.1:8080/x", "http://10.0.0.1:8080"),
        ("https://hooks.example:0/", None),
        ("https://hooks.example:65536/", None),
        ("https://hooks.example@evil.example/", None),
        ("https://hooks.example\\@evil.example/", None),
        ("https://hooks.example#@evil.example/", None),
        ("https://hooks.example?@evil.example/", None),
        ("https://hooks.example/\r\nX: y", None),
        ("https://hooks.example/\n", None),
        ("https://hooks.exämple/", None),
        ("https://[::1]/", None),
        ("https:///x", None),
        ("ftp://hooks.example/", None),
        ("//hooks.example/", None),
        ("", None),
    ],
    ids=repr,
)
def test_an_address_has_one_meaning(url, origin):
    """What two parsers could read in two ways is no address."""
    assert origin_of(url) == origin
