"""API keys as they are kept: under a keyed hash, in the same Redis as the jobs.

The hash is HMAC-SHA256 with a pepper that lies in the data folder: who reads the store alone can
neither use a key nor try guesses, and a secret of 256 random bits needs no slow hash beside that.
"""

import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fimlora_contract.keys import Scope
from fimlora_jobs.answers import as_ms, text_of
from fimlora_jobs.durability import owe
from fimlora_jobs.scripts import run_script
from fimlora_jobs.store import JobStore

PREFIX = "fl_"
USED_EVERY_MS = 60_000


@dataclass(frozen=True, slots=True)
class Secret:
    """A key as its owner sends it: ``fl_<id>_<secret>``.

    Attributes:
        id: Finds the record.
        text: The whole of it.
    """

    id: str
    text: str

    @classmethod
    def new(cls, key_id: str | None = None) -> "Secret":
        """A fresh secret, of a key that is there or of a new one."""
        key_id = key_id or secrets.token_hex(8)
        return cls(key_id, f"{PREFIX}{key_id}_{secrets.token_urlsafe(32)}")

    @classmethod
    def read(cls, text: str) -> "Secret | None":
        """What a client has sent; ``None`` if it cannot be a key of ours."""
        prefix, _, rest = text.partition("_")
        key_id, _, secret = rest.partition("_")
        is_sound = f"{prefix}_" == PREFIX and len(key_id) == 16 and bool(secret)
        return cls(key_id, text) if is_sound and key_id.isalnum() else None

    def hashed(self, pepper: bytes) -> str:
        """What is kept of it."""
        return hmac.new(
            pepper, self.text.encode("utf-8", "surrogatepass"), "sha256"
        ).hexdigest()


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key on record.

    Attributes:
        id: Its id.
        name: Whose it is, or what for.
        tenant: Whose jobs it reaches; empty for the operator's.
        scopes: What it allows.
        created_ms: When it was made.
        expires_ms: When it is refused from; ``None`` for never.
        last_used_ms: When it was used, within a minute; ``None`` before the first use.
        digest: Of its secret.
        before: Digest of the secret before the last rotation; empty without one.
        before_until_ms: Until when that one is good.
    """

    id: str
    name: str
    tenant: str
    scopes: frozenset[Scope]
    created_ms: int
    expires_ms: int | None
    last_used_ms: int | None
    digest: str
    before: str = ""
    before_until_ms: int = 0

    @classmethod
    def from_hash(cls, stored: Mapping[Any, Any]) -> "KeyRecord":
        """Read what HGETALL returned."""
        fields = {text_of(name): text_of(value) for name, value in stored.items()}
        return cls(
            id=fields["id"],
            name=fields["name"],
            tenant=fields["tenant"],
            scopes=frozenset(map(Scope, fields["scopes"].split())),
            created_ms=int(fields["created_ms"]),
            expires_ms=_number(fields.get("expires_ms")),
            last_used_ms=_number(fields.get("last_used_ms")),
            digest=fields["digest"],
            before=fields.get("before", ""),
            before_until_ms=_number(fields.get("before_until_ms")) or 0,
        )

    def accepts(self, digest: str, *, now_ms: int) -> bool:
        """Whether a secret with that digest is good now; takes as long whatever is wrong."""
        is_current = hmac.compare_digest(self.digest, digest)
        is_before = hmac.compare_digest(self.before or "-", digest)
        is_alive = self.expires_ms is None or now_ms < self.expires_ms
        return is_alive and (is_current or (is_before and now_ms < self.before_until_ms))


def _number(text: str | None) -> int | None:
    return int(text) if text else None


@dataclass(frozen=True, slots=True)
class KeyStore:
    """Keys on record.

    Attributes:
        store: Where jobs are on record.
    """

    store: JobStore

    def put(
        self,
        secret: Secret,
        *,
        pepper: bytes,
        name: str,
        tenant: str,
        scopes: frozenset[Scope],
        lives_ms: int | None = None,
    ) -> KeyRecord:
        """Put a new key on record."""
        now = self.store.now_ms()
        fields = {
            "id": secret.id,
            "name": name,
            "tenant": tenant,
            "scopes": " ".join(sorted(scopes)),
            "created_ms": str(now),
            "expires_ms": "" if lives_ms is None else str(now + lives_ms),
            "digest": secret.hashed(pepper),
        }
        pipeline = self.store.redis.pipeline()
        pipeline.hset(
            self._key(secret.id), items=[part for pair in fields.items() for part in pair]
        )
        pipeline.zadd(self._all(), {secret.id: now})
        pipeline.execute()
        owe()
        return KeyRecord.from_hash(fields)

    def find(self, key_id: str) -> KeyRecord | None:
        """A key by its id."""
        stored = self.store.redis.hgetall(self._key(key_id))
        return KeyRecord.from_hash(stored) if stored else None

    def find_now(self, key_id: str) -> tuple[KeyRecord | None, int]:
        """A key by its id, and the server's time, in one round trip."""
        pipeline = self.store.redis.pipeline(transaction=False)
        pipeline.hgetall(self._key(key_id))
        pipeline.time()
        stored, time = pipeline.execute()
        return (KeyRecord.from_hash(stored) if stored else None), as_ms(time)

    def list(self) -> list[KeyRecord]:
        """All keys, in the order in which they were made."""
        pipeline = self.store.redis.pipeline(transaction=False)
        for key_id in self.store.redis.zrange(self._all(), 0, -1):
            pipeline.hgetall(self._key(text_of(key_id)))
        return [KeyRecord.from_hash(stored) for stored in pipeline.execute() if stored]

    def has_any(self) -> bool:
        """Whether a key is on record."""
        return bool(self.store.redis.zcard(self._all()))

    def rotate(self, secret: Secret, *, pepper: bytes, grace_ms: int) -> KeyRecord | None:
        """Give a key another secret; ``None`` when there is no such key."""
        keys = [self._key(secret.id)]
        done = run_script(
            self.store.redis, "key_rotate", keys=keys, args=[secret.hashed(pepper), grace_ms]
        )
        owe()  # or the secret that is told would be good for nothing after a loss of power
        return self.find(secret.id) if done else None

    def remove(self, key_id: str) -> bool:
        """Revoke a key; answers whether it was there."""
        pipeline = self.store.redis.pipeline()
        pipeline.delete(self._key(key_id))
        pipeline.zrem(self._all(), key_id)
        return bool(pipeline.execute()[0])

    def note_use(self, record: KeyRecord, *, now_ms: int) -> None:
        """Put on record that a key was used, at most once a minute."""
        if now_ms - (record.last_used_ms or 0) >= USED_EVERY_MS:
            run_script(self.store.redis, "key_used", keys=[self._key(record.id)], args=[now_ms])

    def _key(self, key_id: str) -> str:
        return self.store.key("api_key", key_id)

    def _all(self) -> str:
        return self.store.key("api_keys")
