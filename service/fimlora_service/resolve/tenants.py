"""Who asks the hub, as it may appear in keys."""

import hmac


def tenant_of(token: str | None) -> str:
    """Stands for a token, which cannot be found from it."""
    if token is None:
        return "anonymous"
    return hmac.new(b"fimlora tenant", token.encode(), "sha256").hexdigest()
