"""Sign a webhook as Standard Webhooks 1.0 has it: HMAC-SHA256 over id, timestamp and body."""

import base64
import hashlib
import hmac
from collections.abc import Sequence


def sign(id_: str, body: bytes, *, keys: Sequence[bytes], now: int) -> dict[str, str]:
    """Headers of a webhook.

    Args:
        id_: The same for every try.
        body: What is sent.
        keys: What it is signed with, one signature each; none for no signature.
        now: Seconds since the epoch.
    """
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "fimlora-webhook",
        "webhook-id": id_,
        "webhook-timestamp": str(now),
    }
    signed = f"{id_}.{now}.".encode() + body
    signatures = [base64.b64encode(hmac.digest(key, signed, hashlib.sha256)) for key in keys]
    if signatures:
        headers["webhook-signature"] = " ".join(f"v1,{text.decode()}" for text in signatures)
    return headers
