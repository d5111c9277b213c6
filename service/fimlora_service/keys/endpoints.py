"""API keys: made, listed, given another secret, revoked; a tenant's admin reaches its own."""

import logging
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Path, Response

from fimlora_contract.keys import (
    ApiKey,
    ApiKeyPage,
    KeyRequest,
    NewApiKey,
    RotationRequest,
    Scope,
)
from fimlora_jobs.keys import KeyRecord, KeyStore, Secret
from fimlora_service import errors
from fimlora_service.http.dependencies import (
    PrefixDep,
    SettingsDep,
    part,
    problems,
    require_json,
)
from fimlora_service.keys.access import Whose
from fimlora_service.keys.gate import Gate
from fimlora_service.keys.principal import (
    ADMINISTERS,
    EVERYBODY,
    MAKES_FIRST_KEY,
    OPERATOR,
    Principal,
    PrincipalDep,
)
from fimlora_service.keys.ring import CHALLENGE, KeyRing
from fimlora_service.keys.routes import ScopedRoute

SECRET = {"Cache-Control": "no-store"}
GateDep = Annotated[Gate, part("gate")]
KeyId = Annotated[
    str, Path(max_length=64, description="Id of a key.", examples=["0123456789abcdef"])
]
BODY_REFUSALS = (
    errors.MalformedRequest,
    errors.PayloadTooLarge,
    errors.UnsupportedMediaType,
    errors.ValidationFailed,
)
router = APIRouter(tags=["keys"], route_class=ScopedRoute)
logger = logging.getLogger(__name__)


@router.post(
    "/keys",
    dependencies=[ADMINISTERS, MAKES_FIRST_KEY, Depends(require_json)],
    status_code=201,
    response_description="The key, with its secret: it is never shown again.",
    responses=problems(*BODY_REFUSALS, errors.QuotaExceeded),
)
def create_key(
    body: KeyRequest,
    gate: GateDep,
    principal: PrincipalDep,
    settings: SettingsDep,
    prefix: PrefixDep,
    response: Response,
) -> NewApiKey:
    """Make a key; the first one ends that the service lets everybody of this machine in."""
    tenant = tenant_for(body, principal)
    ring, secret = gate.ring, Secret.new()
    if principal.key_id:
        ring.peppers.end_trial()
    else:
        check_first(body, tenant)
        make_way(ring)
    check_number(tenant, ring.keys, most=settings.max_keys_per_tenant)
    made = ring.keys.put(
        secret,
        pepper=ring.peppers.read_or_make(),
        name=body.name,
        tenant=tenant,
        scopes=frozenset(body.scopes),
        lives_ms=None if body.expires_in_s is None else body.expires_in_s * 1000,
    )
    ring.peppers.mark_in_use()
    log("key.created", made, principal)
    response.headers.update(SECRET | {"Location": f"{prefix}/keys/{made.id}"})
    return NewApiKey(**fields_of(made), key=secret.text)


@router.get("/keys", dependencies=[ADMINISTERS], responses=problems(errors.ValidationFailed))
def list_keys(gate: GateDep, whose: Whose) -> ApiKeyPage:
    """List keys, without their secrets."""
    found = [key for key in gate.ring.keys.list() if whose in (None, key.tenant)]
    return ApiKeyPage(data=[ApiKey(**fields_of(key)) for key in found])


@router.get(
    "/keys/{id}",
    dependencies=[ADMINISTERS],
    responses=problems(errors.KeyNotFound, errors.ValidationFailed),
)
def retrieve_key(id: KeyId, gate: GateDep, principal: PrincipalDep) -> ApiKey:
    """Describe one key, without its secret."""
    return ApiKey(**fields_of(find(id, gate.ring.keys, principal)))


@router.post(
    "/keys/{id}/rotate",
    dependencies=[ADMINISTERS, Depends(require_json)],
    response_description="The key, with its new secret: it is never shown again.",
    responses=problems(errors.KeyNotFound, *BODY_REFUSALS),
)
def rotate_key(
    id: KeyId,
    body: Annotated[RotationRequest, Body()],
    gate: GateDep,
    principal: PrincipalDep,
    response: Response,
) -> NewApiKey:
    """Give a key another secret; the one before stays good for a while."""
    ring = gate.ring
    known, secret = find(id, ring.keys, principal), Secret.new(id)
    made = ring.keys.rotate(
        secret, pepper=ring.peppers.read_or_make(), grace_ms=body.grace_s * 1000
    )
    if made is None:
        raise missing(known.id)
    ring.forget(id)
    log("key.rotated", made, principal)
    response.headers.update(SECRET)
    return NewApiKey(**fields_of(made), key=secret.text)


@router.delete(
    "/keys/{id}",
    dependencies=[ADMINISTERS],
    status_code=204,
    responses=problems(errors.KeyNotFound, errors.ValidationFailed),
)
def revoke_key(id: KeyId, gate: GateDep, principal: PrincipalDep) -> None:
    """Revoke a key; what was made with it stays."""
    ring = gate.ring
    known = find(id, ring.keys, principal)
    if not ring.has_admin_key:
        check_not_last(known, ring.keys)
    ring.keys.remove(id)
    ring.forget(id)
    log("key.revoked", known, principal)


def tenant_for(body: KeyRequest, principal: Principal) -> str:
    """Whose a new key is.

    Raises:
        Forbidden: It would be another tenant's.
    """
    if body.tenant not in (None, principal.tenant) and not principal.is_operator:
        raise errors.Forbidden("only the operator's admin keys make keys of other tenants")
    return principal.tenant if body.tenant is None else body.tenant


def check_number(tenant: str, keys: KeyStore, *, most: int) -> None:
    """Refuse one key too many.

    Raises:
        QuotaUsedUp: It is.
    """
    if most and sum(key.tenant == tenant for key in keys.list()) >= most:
        raise errors.QuotaUsedUp(
            f"the tenant has {most} API keys, and no more are allowed "
            "(FIMLORA_MAX_KEYS_PER_TENANT)",
            next_step="Revoke keys that are not needed: `fimlora keys` lists them.",
        )


def check_first(body: KeyRequest, tenant: str) -> None:
    """Refuse a first key that could make no second one, or only for a while.

    Raises:
        ValidationFailed: It could not.
    """
    if tenant != OPERATOR or Scope.ADMIN not in body.scopes:
        raise errors.ValidationFailed(
            "the first key must have scope admin and no tenant: from then on only an admin key "
            "makes others"
        )
    if body.expires_in_s is not None:
        raise errors.ValidationFailed(
            "the first key must not expire: nobody could make another one then; make one that "
            "stays first, or set FIMLORA_ADMIN_KEY"
        )


def make_way(ring: KeyRing) -> None:
    """Let the first key be made: none is on record, or one that has let nobody in, which goes.

    Raises:
        Unauthenticated: There are others.
    """
    known = ring.keys.list()
    if known and (len(known) > 1 or known[0].last_used_ms or not ring.is_untried):
        raise errors.Unauthenticated("there are API keys already", headers=CHALLENGE)
    ring.peppers.begin_trial()
    for key in known:
        ring.keys.remove(key.id)
        ring.forget(key.id)
        log("key.replaced", key, EVERYBODY)


def check_not_last(known: KeyRecord, keys: KeyStore) -> None:
    """Refuse to revoke the one key that can make others for everybody.

    Raises:
        ValidationFailed: It is.
    """
    if is_operators(known) and not any(
        is_operators(key) and key.expires_ms is None
        for key in keys.list()
        if key.id != known.id
    ):
        raise errors.ValidationFailed(
            f"key {known.id!r} is the last admin key of the operator that does not expire; make "
            "another one first, or set FIMLORA_ADMIN_KEY"
        )


def is_operators(key: KeyRecord) -> bool:
    """Whether a key may do everything."""
    return key.tenant == OPERATOR and Scope.ADMIN in key.scopes


def find(key_id: str, keys: KeyStore, principal: Principal) -> KeyRecord:
    """A key by its id, if it is there for somebody.

    Raises:
        KeyNotFound: It is not, or is another tenant's.
    """
    known = keys.find(key_id)
    if known is None or not principal.sees(known.tenant):
        raise missing(key_id)
    return known


def missing(key_id: str) -> errors.KeyNotFound:
    """What is said of a key that is not there."""
    return errors.KeyNotFound(f"no API key {key_id!r}")


def fields_of(key: KeyRecord) -> dict[str, Any]:
    """A key as it is listed."""
    return {
        "id": key.id,
        "name": key.name,
        "tenant": key.tenant,
        "scopes": sorted(key.scopes),
        "created_at": as_time(key.created_ms),
        "expires_at": as_time(key.expires_ms),
        "last_used_at": as_time(key.last_used_ms),
        "rotated_until": as_time(key.before_until_ms or None),
    }


def as_time(milliseconds: int | None) -> datetime | None:
    """A stored time as an aware datetime."""
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, tz=UTC)


def log(event: str, key: KeyRecord, principal: Principal) -> None:
    """Tell the operator what happened to a key, never its secret."""
    fields = {"key_id": key.id, "tenant": key.tenant, "by": principal.key_id}
    logger.info(event, extra=fields)
