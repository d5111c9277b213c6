"""What a signature is made of, before any key is used."""

import json

import pytest

from fimlora_contract.signatures import (
    Envelope,
    InvalidSignature,
    Signed,
    message_of,
    read_bundle,
    read_statement,
    statement_of,
    write_bundle,
)

SIGNED = Signed(
    "sha256:" + "ab" * 32, {"b.json": "sha256:" + "01" * 32, "a": "sha256:" + "02" * 32}
)


def test_the_same_files_are_the_same_statement_in_any_order():
    """And what is read of it is what was written."""
    reversed_ = Signed(SIGNED.result, dict(reversed(SIGNED.files.items())))

    assert statement_of(SIGNED) == statement_of(reversed_)
    assert read_statement(statement_of(SIGNED)) == SIGNED


def test_a_bundle_is_read_as_it_was_written():
    """Payload and signature, byte for byte."""
    envelope = Envelope(statement_of(SIGNED), b"\x00signature")

    assert read_bundle(write_bundle(envelope, public_key_pem=b"pem")) == envelope


def test_the_message_is_the_one_of_the_standard():
    """The example of DSSE's own protocol, with our type."""
    kind = "application/vnd.in-toto+json"

    assert message_of(b"hello world") == f"DSSEv1 28 {kind} 11 hello world".encode()


def changed(**fields) -> bytes:
    return json.dumps(json.loads(statement_of(SIGNED)) | fields).encode()


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"[]", b"{}", b"null", b"[" * 10_000, changed(_type="x"), changed(predicateType="x"),
        changed(subject=[]), changed(subject=[{"name": "x", "digest": {"sha256": "00"}}]),
        changed(predicate={"resources": [{"name": "a", "algorithm": "md5", "digest": "00"}]}),
        changed(predicate={"resources": 7}), changed(predicate={"resources": [{"name": "a"}]}),
    ],
    ids=lambda payload: payload[:30],
)  # fmt: skip
def test_a_statement_about_something_else_is_refused(payload):
    """Also one whose root digest does not follow from its files."""
    with pytest.raises(InvalidSignature):
        read_statement(payload)


@pytest.mark.parametrize(
    "text",
    [
        "", "{}", "[]", '{"mediaType": 1}', "[" * 10_000,
        write_bundle(Envelope(b"x", b"y"), public_key_pem=b"").replace("in-toto", "other"),
        write_bundle(Envelope(b"x", b"y"), public_key_pem=b"").replace("bundle.v0.3", "v9"),
        write_bundle(Envelope(b"x", b"y"), public_key_pem=b"").replace('"eA=="', '"e!"'),
        write_bundle(Envelope(b"x", b"y"), public_key_pem=b"").replace('"sig"', '"gis"'),
    ],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_a_bundle_of_another_kind_is_refused(text):
    """Whatever it is."""
    with pytest.raises(InvalidSignature):
        read_bundle(text)
