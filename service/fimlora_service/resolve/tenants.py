"""Who asks, the service of the hub and a tenant of the service, as it may appear in keys."""

import hmac


def tenant_of(token: str | None) -> str:
    """Stands for a token, which cannot be found from it."""
    if token is None:
        return "anonymous"
    return hmac.new(b"fimlora tenant", token.encode(), "sha256").hexdigest()


def salt_of(owner: str, hub: str) -> str:
    """Who may find what was made for a tenant; empty for everybody.

    Args:
        owner: The tenant: nothing that it has made is found by another one. Empty for the operator.
        hub: Who this service is to the hub, where only he may read the content; else empty.
    """
    return " ".join(filter(None, (owner and f"@{owner}", hub)))
