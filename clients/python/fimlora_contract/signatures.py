"""Signed results: what is signed, and how the signature is written down.

As OpenSSF Model Signing 1.0 has it with a key: an in-toto statement that lists every file with its
digest, in a DSSE envelope, in a Sigstore bundle. Its own tool verifies it, too. Keys are used by
whoever signs and verifies; nothing here needs a library of cryptography.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fimlora_contract.digests import canonical_json

NAME = "model.sig"
PREFIX = "sha256:"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
IN_TOTO = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://model_signing/signature/v1.0"
# How the files were looked at: whole, each by its sha256, the signature itself left out.
SERIALIZATION = {
    "method": "files",
    "hash_type": "sha256",
    "allow_symlinks": False,
    "ignore_paths": [NAME],
}


class InvalidSignature(ValueError):
    """A signature cannot be read, or does not speak for what it comes with."""


@dataclass(frozen=True, slots=True)
class Signed:
    """What a signature speaks for.

    Attributes:
        result: The content address of the result.
        files: Digest of each file by name.
    """

    result: str
    files: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Envelope:
    """A statement with its signature, neither of them checked.

    Attributes:
        payload: The statement's bytes.
        signature: Of `message_of` the payload.
    """

    payload: bytes
    signature: bytes


def statement_of(signed: Signed) -> bytes:
    """The statement, in the same bytes for the same files."""
    digests = {name: signed.files[name].removeprefix(PREFIX) for name in sorted(signed.files)}
    return canonical_json(
        {
            "_type": STATEMENT,
            "subject": [{"name": signed.result, "digest": {"sha256": _root(digests)}}],
            "predicateType": PREDICATE,
            "predicate": {
                "serialization": SERIALIZATION,
                "resources": [
                    {"name": name, "algorithm": "sha256", "digest": digest}
                    for name, digest in digests.items()
                ],
            },
        }
    ).encode()


def message_of(payload: bytes) -> bytes:
    """What is really signed: a payload with its type and length, as DSSE has it."""
    return f"DSSEv1 {len(IN_TOTO)} {IN_TOTO} {len(payload)} ".encode() + payload


def write_bundle(envelope: Envelope, *, public_key_pem: bytes) -> str:
    """A signature as it is kept in a file."""
    bundle = {
        "mediaType": BUNDLE,
        "verificationMaterial": {
            "publicKey": {"hint": hashlib.sha256(public_key_pem).hexdigest()},
            "tlogEntries": [],
        },
        "dsseEnvelope": {
            "payload": base64.b64encode(envelope.payload).decode(),
            "payloadType": IN_TOTO,
            "signatures": [{"sig": base64.b64encode(envelope.signature).decode(), "keyid": ""}],
        },
    }
    return json.dumps(bundle, indent=2) + "\n"


def read_bundle(text: str | bytes) -> Envelope:
    """A signature from a file; whoever reads it has yet to verify it.

    Raises:
        InvalidSignature: It is none.
    """
    try:
        bundle = json.loads(text)
        envelope = bundle["dsseEnvelope"]
        kinds = (bundle["mediaType"], envelope["payloadType"])
        [signature] = envelope["signatures"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        signed = base64.b64decode(signature["sig"], validate=True)
    except (ValueError, LookupError, TypeError, RecursionError, binascii.Error) as error:
        raise InvalidSignature(f"{NAME} is no signature of a model") from error
    if kinds != (BUNDLE, IN_TOTO):
        raise InvalidSignature(f"{NAME} is a bundle of another kind: {str(kinds)[:100]}")
    return Envelope(payload, signed)


def read_statement(payload: bytes) -> Signed:
    """What a verified payload speaks for.

    Raises:
        InvalidSignature: It is no statement about files of a model.
    """
    try:
        statement: dict[str, Any] = json.loads(payload)
        kinds = (statement["_type"], statement["predicateType"])
        [subject] = statement["subject"]
        entries = statement["predicate"]["resources"]
        digests = {str(entry["name"]): str(entry["digest"]) for entry in entries}
        is_sound = (
            kinds == (STATEMENT, PREDICATE)
            and len(digests) == len(entries)
            and all(entry["algorithm"] == "sha256" for entry in entries)
            and subject["digest"]["sha256"] == _root(digests)
        )
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise InvalidSignature(f"{NAME} signs no files of a model") from error
    if not is_sound:
        raise InvalidSignature(f"{NAME} signs something else than files of a model")
    return Signed(
        str(subject["name"]), {name: f"{PREFIX}{digest}" for name, digest in digests.items()}
    )


def _root(digests: Mapping[str, str]) -> str:
    """The digest over all digests, in the order of their names."""
    return hashlib.sha256(b"".join(bytes.fromhex(d) for d in digests.values())).hexdigest()
