"""Verify a signed result: every file of a folder, none missing, none changed, none more."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fimlora_client.errors import InvalidFile, MissingExtra, SignatureInvalid
from fimlora_contract.digests import digest_file
from fimlora_contract.signatures import (
    NAME,
    Envelope,
    InvalidSignature,
    Signed,
    message_of,
    read_bundle,
    read_statement,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

PEM = (
    "Give the public key that whoever runs the service has published; docs/signing.md has more."
)
MAX_BYTES = 1 << 20  # of a signature or a key


def verify_folder(folder: str | Path, public_keys: Sequence[str | Path]) -> Signed:
    """Verify the files of a folder by the signature among them.

    Args:
        folder: What was fetched.
        public_keys: Files of keys that may have signed it, in PEM.

    Returns:
        What the signature speaks for.

    Raises:
        SignatureInvalid: A file is missing, changed or not signed, or no key has signed them.
        InvalidFile: A key cannot be read.
        MissingExtra: The library of cryptography is not installed.
    """
    try:
        there = {path.name: path for path in Path(folder).iterdir()}
    except OSError as error:
        raise InvalidFile(f"cannot read {folder}: {error.strerror}") from error
    return verify_files(there, public_keys)


def verify_files(files: Mapping[str, Path], public_keys: Sequence[str | Path]) -> Signed:
    """Verify files, wherever they lie, by the signature among them.

    Args:
        files: Where each is, by the name it is to have.
        public_keys: As for `verify_folder`, and so is what it raises.
    """
    keys = [_read_key(Path(path)) for path in public_keys]
    try:
        if NAME not in files:
            raise InvalidSignature(f"there is no {NAME}, so the result is not signed")
        envelope = read_bundle(_read(files[NAME]))
        if not any(_is_signed_by(key, envelope) for key in keys):
            raise InvalidSignature(f"{NAME} was made with none of the given keys")
        signed = read_statement(envelope.payload)
        _compare({name: path for name, path in files.items() if name != NAME}, signed)
    except InvalidSignature as error:
        raise SignatureInvalid(str(error)) from error
    except OSError as error:
        raise InvalidFile(f"cannot read what is to be verified: {error.strerror}") from error
    return signed


def _compare(there: Mapping[str, Path], signed: Signed) -> None:
    """Hold what is there against what was signed.

    Raises:
        InvalidSignature: They differ.
    """
    if missing := sorted(signed.files.keys() - there.keys()):
        raise InvalidSignature(f"{missing[0]} was signed and is missing")
    if extra := sorted(there.keys() - signed.files.keys()):
        raise InvalidSignature(f"{extra[0]} is there and was not signed")
    for name, digest in sorted(signed.files.items()):
        path = there[name]
        if path.is_symlink() or not path.is_file() or digest_file(path) != digest:
            raise InvalidSignature(f"{name} is not the file that was signed")


def _is_signed_by(key: "EllipticCurvePublicKey", envelope: Envelope) -> bool:
    from cryptography.exceptions import InvalidSignature as WrongSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key.verify(envelope.signature, message_of(envelope.payload), ec.ECDSA(hashes.SHA256()))
    except WrongSignature:
        return False
    return True


def _read_key(path: Path) -> "EllipticCurvePublicKey":
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError as error:
        raise MissingExtra(
            "verifying signatures needs cryptography, which is not installed: "
            "pip install 'fimlora[signing]'"
        ) from error
    try:
        key = load_pem_public_key(_read(path))
    except OSError as error:
        raise InvalidFile(f"cannot read the key {path}: {error.strerror}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise InvalidFile(f"{path} is no public key in PEM", next_step=PEM) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise InvalidFile(
            f"{path} is a key of another kind; allowed is one of the curve P-256", next_step=PEM
        )
    return key


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise InvalidSignature(f"{path.name} is larger than any signature or key")
    return content
