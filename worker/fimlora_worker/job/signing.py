"""Sign results with the operator's key, so that whoever fetches them can tell where they are from.

The signature lies beside what it signs: neither the files nor their digest depend on it. It is
deterministic (RFC 6979), so the same result has the same signature on every attempt.
"""

from functools import lru_cache
from typing import TYPE_CHECKING

from fimlora_contract.signatures import (
    NAME,
    Envelope,
    Signed,
    message_of,
    statement_of,
    write_bundle,
)
from fimlora_jobs.results.store import StoredFile
from fimlora_worker.settings import Settings

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

MEDIA_TYPE = "application/json"


class SigningKey:
    """A private key of the curve P-256.

    Args:
        pem: The key, not encrypted.

    Raises:
        ValueError: It is no such key; the message does not repeat it.
    """

    def __init__(self, pem: str) -> None:
        self._key = _read(pem)

    def sign(self, result: str, files: list[StoredFile]) -> str:
        """The text of the signature of a result."""
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        payload = statement_of(Signed(result, {file.name: file.digest for file in files}))
        how = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
        public = self._key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        signature = self._key.sign(message_of(payload), how)
        return write_bundle(Envelope(payload, signature), public_key_pem=public)


@lru_cache(maxsize=1)
def signing_key(settings: Settings) -> SigningKey | None:
    """The operator's key; ``None`` if results are not signed."""
    given = settings.signing_key
    return SigningKey(given.get_secret_value()) if given else None


def artifact_of(signature: str) -> StoredFile:
    """A signature as it is listed among the files of a result."""
    from fimlora_contract.digests import digest_bytes

    content = signature.encode()
    return StoredFile(
        name=NAME, digest=digest_bytes(content), size=len(content), media_type=MEDIA_TYPE
    )


def _read(pem: str) -> "EllipticCurvePrivateKey":
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ValueError("it is no private key in PEM, or is encrypted") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
        raise ValueError("it is a key of another kind; allowed is one of the curve P-256")
    return key
