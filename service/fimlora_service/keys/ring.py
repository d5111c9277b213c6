"""From what a client sends to who he is: the keys that are good now."""

import hashlib
import hmac
import time
from contextlib import suppress
from threading import Lock

from cachetools import TTLCache
from redis.exceptions import RedisError

from fimlora_contract.keys import Scope
from fimlora_jobs.keys import KeyStore, Secret
from fimlora_service.errors import Unauthenticated
from fimlora_service.keys.pepper import PepperFile
from fimlora_service.keys.principal import OPERATOR, Principal

# For so long a key that was revoked through another process is good in this one.
KNOWN_S = 2.0
MAX_KNOWN = 4096
CHALLENGE = {"WWW-Authenticate": 'Bearer realm="fimlora"'}
WRONG = {"WWW-Authenticate": 'Bearer realm="fimlora", error="invalid_token"'}


class KeyRing:
    """The keys that let somebody in; safe to use from several threads.

    Args:
        keys: Keys on record.
        peppers: What their hashes are made with.
        admin_key: One more, which the operator has set; it needs no store.
        known_s: How long a key is believed without another look.
    """

    def __init__(
        self,
        keys: KeyStore,
        peppers: PepperFile,
        *,
        admin_key: str | None = None,
        known_s: float = KNOWN_S,
    ) -> None:
        self.keys = keys
        self.peppers = peppers
        self._admin = _digest(admin_key) if admin_key else None
        self._lock = Lock()
        self._known: TTLCache[str, Principal] = TTLCache(MAX_KNOWN, known_s)
        self._known_s = known_s
        self._is_closed = admin_key is not None
        self._looked_at = float("-inf")

    @property
    def has_admin_key(self) -> bool:
        """Whether the operator has set a key."""
        return self._admin is not None

    @property
    def is_closed(self) -> bool:
        """Whether keys are asked for, as far as is known without a look into the store."""
        if not self._is_closed and self.peppers.is_in_use:
            self._is_closed = True
        return self._is_closed

    @property
    def is_open(self) -> bool:
        """Whether no key has ever been made, so that none can be asked for."""
        if not self.is_closed and time.monotonic() - self._looked_at >= self._known_s:
            self._look_for_keys()
        return not self._is_closed

    def _look_for_keys(self) -> None:
        """Close if there are keys: the data folder, with its mark, may be another than theirs."""
        try:
            if self.keys.has_any():
                self._is_closed = True
                with suppress(OSError):  # on a full disk the keys themselves must do
                    self.peppers.mark_in_use()
        except RedisError:
            # While it is away, nothing in it can be had; the next request looks again.
            if self._looked_at == float("-inf"):
                return
        self._looked_at = time.monotonic()

    @property
    def is_untried(self) -> bool:
        """Whether the first key has let nobody in yet, so that it may be made again."""
        return not self.has_admin_key and self.peppers.is_untried

    def identify(self, token: str) -> Principal:
        """Who has sent a key.

        Raises:
            Unauthenticated: It is not good.
        """
        if self._admin and hmac.compare_digest(self._admin, _digest(token)):
            return Principal(OPERATOR, frozenset(Scope), "operator")
        secret, pepper = Secret.read(token), self.peppers.read()
        found = self._look_up(secret, pepper) if secret and pepper else None
        if found is None:
            text = "the API key is not known here: mistyped, expired or revoked"
            raise Unauthenticated(text, headers=WRONG)
        return found

    def forget(self, key_id: str) -> None:
        """Believe a key no longer without another look."""
        with self._lock:
            for digest, principal in list(self._known.items()):
                if principal.key_id == key_id:
                    self._known.pop(digest, None)

    def _look_up(self, secret: Secret, pepper: bytes) -> Principal | None:
        digest = secret.hashed(pepper)
        with self._lock:
            if known := self._known.get(digest):
                return known
        record, now_ms = self.keys.find_now(secret.id)
        if record is None or not record.accepts(digest, now_ms=now_ms):
            return None
        self.peppers.end_trial()
        with suppress(RedisError):  # a store that takes no writes is no reason to refuse
            self.keys.note_use(record, now_ms=now_ms)
        principal = Principal(record.tenant, record.scopes, record.id)
        with self._lock:
            self._known[digest] = principal
        return principal


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
