"""API keys, for who has an admin key."""

from collections.abc import Sequence

from fimlora_client.aio.sender import AsyncSender
from fimlora_client.bodies import as_json, checked
from fimlora_client.calls import JSON, Call, given, route
from fimlora_contract.keys import ApiKey, ApiKeyPage, KeyRequest, NewApiKey, RotationRequest


class AsyncKeys:
    """API keys; a secret is in the answer that makes it, and nowhere else."""

    def __init__(self, sender: AsyncSender) -> None:
        self._sender = sender

    async def create(
        self,
        name: str,
        *,
        scopes: Sequence[str] | None = None,
        tenant: str | None = None,
        expires_in_s: int | None = None,
    ) -> NewApiKey:
        """Make a key; without ``scopes`` one that reads, submits and cancels.

        ``POST /keys``
        """
        fields = {
            "name": name,
            "scopes": None if scopes is None else list(scopes),
            "tenant": tenant,
            "expires_in_s": expires_in_s,
        }
        asked = checked(KeyRequest, {k: v for k, v in fields.items() if v is not None})
        # Once: a second try would make a second key.
        call = Call("POST", "/keys", headers=JSON, content=as_json(asked), is_final=True)
        return await self._sender.ask(call, NewApiKey)

    async def list(self, *, tenant: str | None = None) -> ApiKeyPage:
        """All keys, or those of one tenant, without their secrets.

        ``GET /keys``
        """
        return await self._sender.ask(
            Call("GET", "/keys", params=given(tenant=tenant)), ApiKeyPage
        )

    async def retrieve(self, key_id: str) -> ApiKey:
        """One key, without its secret.

        ``GET /keys/{id}``
        """
        return await self._sender.ask(Call("GET", route("keys", key_id)), ApiKey)

    async def rotate(self, key_id: str, *, grace_s: int = 3600) -> NewApiKey:
        """Give a key another secret; the one before stays good for ``grace_s`` seconds.

        ``POST /keys/{id}/rotate``
        """
        body = as_json(checked(RotationRequest, {"grace_s": grace_s}))
        path = route("keys", key_id, "rotate")
        call = Call("POST", path, headers=JSON, content=body, is_final=True)
        return await self._sender.ask(call, NewApiKey)

    async def revoke(self, key_id: str) -> None:
        """Revoke a key; what was made with it stays.

        ``DELETE /keys/{id}``
        """
        await self._sender.do(Call("DELETE", route("keys", key_id)))
