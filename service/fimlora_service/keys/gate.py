"""Who comes in: read from the head of a request, before its body is."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.types import Scope as Request

from fimlora_contract.keys import Scope
from fimlora_service.errors import Forbidden, Unauthenticated
from fimlora_service.http.peers import is_local, require_local
from fimlora_service.http.threads import Threads, in_thread
from fimlora_service.keys.principal import EVERYBODY, Principal
from fimlora_service.keys.rates import ALL, SUBMISSIONS, RateLimits
from fimlora_service.keys.ring import CHALLENGE, KeyRing


@dataclass(frozen=True, slots=True)
class Admission:
    """Somebody who may come in.

    Attributes:
        principal: Who it is.
        headers: For the answer.
    """

    principal: Principal
    headers: Mapping[str, str] = field(default_factory=dict)


class Gate:
    """Lets in who has a key with the scope that a route needs, and asks not too often.

    Args:
        ring: The keys that are good.
        rates: How often a key may ask.
    """

    def __init__(self, ring: KeyRing, rates: RateLimits) -> None:
        self.ring = ring
        self._rates = rates

    async def admit(
        self, request: Request, needed: Scope, *, makes_first_key: bool = False
    ) -> Admission:
        """Let somebody in.

        Args:
            request: The request as ASGI has it.
            needed: The scope of the route.
            makes_first_key: Whether the route makes keys, also for this machine as long as the
                first one has let nobody in.

        Raises:
            Unauthenticated: There is no key, or it is not good; or, before the first key is made,
                the peer is on another machine.
            Forbidden: The key has not that scope.
            RateLimited: It was used too often.
        """
        token = bearer_token(request)
        if token is None and not self.ring.is_closed:
            require_local(request)
            if await in_thread(Threads.LOOKS, lambda: self.ring.is_open):
                return Admission(EVERYBODY)
        if token is None and makes_first_key and is_local(request) and self.ring.is_untried:
            return Admission(EVERYBODY)
        if token is None:
            raise Unauthenticated("there is no API key in the request", headers=CHALLENGE)
        return await in_thread(Threads.LOOKS, self._admit, token, needed, peer_of(request))

    def _admit(self, token: str, needed: Scope, peer: str) -> Admission:
        try:
            principal = self.ring.identify(token)
        except Unauthenticated:
            self._rates.hit(f"peer {peer}", [ALL])  # a guess costs a look into the store
            raise
        limits = [ALL, SUBMISSIONS] if needed is Scope.SUBMIT else [ALL]
        headers = self._rates.hit(principal.key_id, limits)
        check_scope(principal, needed)
        return Admission(principal, headers)


def peer_of(request: Request) -> str:
    """The address that a request comes from."""
    client = request.get("client")
    return str(client[0]) if client else ""


def bearer_token(request: Request) -> str | None:
    """The key of a request.

    Raises:
        Unauthenticated: There are several.
    """
    given = Headers(scope=request).getlist("authorization")
    tokens = [text.strip() for scheme, _, text in map(_split, given) if scheme == "bearer"]
    if len(tokens) > 1:
        raise Unauthenticated(
            "there is more than one API key in the request", headers=CHALLENGE
        )
    return tokens[0] if tokens else None


def _split(header: str) -> tuple[str, str, str]:
    scheme, space, text = header.strip().partition(" ")
    return scheme.lower(), space, text


def check_operator(principal: Principal) -> None:
    """Refuse who reaches one tenant only.

    Raises:
        Forbidden: He does.
    """
    if not principal.is_operator:
        raise Forbidden("this is about all tenants: it needs an admin key of the operator")


def check_scope(principal: Principal, needed: Scope) -> None:
    """Refuse who has not the scope that is needed.

    Raises:
        Forbidden: He has not.
    """
    if not principal.may(needed):
        has = ", ".join(sorted(principal.scopes))
        raise Forbidden(
            f"this needs a key with scope {needed}; the key in the request has {has}"
        )
