"""What answers to which inputs: the newest result per model, dataset and budget, and pins.

A look-up is by the words a client would use in a request, or by content: every job is
filed under each combination of them, so that finding one is a single read.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from fimlora_contract.budgets import BUDGET_UNITS
from fimlora_contract.digests import digest_of
from fimlora_contract.jobs import JobStatus
from fimlora_contract.references import expand_dataset, expand_model
from fimlora_jobs.answers import text_of
from fimlora_jobs.reader import JobMissing
from fimlora_jobs.record import JobRecord
from fimlora_jobs.result_owners import ALL, ResultOwners
from fimlora_jobs.scripts import run_script
from fimlora_jobs.store import JobStore

N_LOOKED_AT = 20
MAX_HISTORY = 100
_COMPLETE = "all"  # among all pins when none is missing; theirs have colons


def input_keys(record: JobRecord) -> list[str]:
    """All keys under which a job is filed."""
    request, resolved = record.request, record.resolved
    budget = {u: request["budget"][u] for u in BUDGET_UNITS if request["budget"].get(u)}
    budgets: tuple[Any, ...] = (None, budget)
    references = product(
        _names(request["base_model"], resolved["base_model"]),
        _names(request["dataset"], resolved["dataset"]),
        budgets,
    )
    tenant = record.fields.get("tenant", "")
    return [_key(model, dataset, spent, tenant) for model, dataset, spent in references]


def lookup_key(
    model: str, dataset: str, budget: Mapping[str, Any] | None, *, tenant: str = ""
) -> str:
    """The key that a look-up reads.

    Args:
        model: Short form of a base model, or the digest of its content.
        dataset: Short form of a dataset, or the digest of its content.
        budget: The amount under its unit; ``None`` for any.
        tenant: Who asks for what not everybody may read; empty for what everybody may.
    """
    return _key(_asked(expand_model(model)), _asked(expand_dataset(dataset)), budget, tenant)


def _key(model: Any, dataset: Any, budget: Any, tenant: str) -> str:
    return digest_of([model, dataset, budget, *([tenant] if tenant else [])])


def _asked(reference: Mapping[str, Any]) -> list[Any]:
    """A short form as one of the names that `_names` gives."""
    name = reference.get("id") or reference["name"]
    if str(name).startswith("sha256:"):
        return ["content", name]
    return [reference["source"], name, reference.get("revision")]


def _names(reference: Mapping[str, Any], resolved: Mapping[str, Any]) -> Iterator[list[Any]]:
    """Everything a reference may be asked for by."""
    if resolved.get("digest"):
        yield ["content", resolved["digest"]]
    name = reference.get("id") or reference.get("name")
    if name is None:
        return  # inline rows have no name
    yield [reference["source"], name, None]
    for revision in dict.fromkeys([reference.get("revision"), resolved.get("revision")]):
        if revision:
            yield [reference["source"], name, revision]


@dataclass(frozen=True, slots=True)
class Pinned:
    """What a pin stood for at some time.

    Attributes:
        digest: The result.
        pinned_at_ms: Since when.
        by: Id of the key that was used; empty without keys.
    """

    digest: str
    pinned_at_ms: int
    by: str = ""


@dataclass(frozen=True, slots=True)
class FoundPin:
    """A pin.

    Attributes:
        owner: The tenant whose it is; empty for one that all share.
        history: What it stands for and stood for, the newest first.
    """

    owner: str
    history: list[Pinned]


@dataclass(frozen=True, slots=True)
class ListedPin:
    """A pin in a list.

    Attributes:
        name: The name.
        tag: The tag.
        owner: The tenant whose it is; empty for one that all share.
        newest: What it stands for.
    """

    name: str
    tag: str
    owner: str
    newest: Pinned


def among_all(name: str, tag: str, owner: str) -> str:
    """A pin in the list of all, which has each owner's together in the order of ``name:tag``."""
    return f"{owner}:{name}:{tag}"


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Results by inputs and by name, in the same Redis as the jobs."""

    store: JobStore

    def file(self, record: JobRecord) -> None:
        """Let look-ups by its inputs find a job that has succeeded."""
        for key in input_keys(record):
            self.store.name(record.id, self.store.key("inputs", key), among_others=True)

    def newest_of(self, keys: Iterable[str]) -> JobRecord | None:
        """The newest job that is filed under any of some keys."""
        found = filter(None, map(self.newest, keys))
        return max(found, key=lambda record: record.id, default=None)

    def newest(self, key: str) -> JobRecord | None:
        """The newest job that is filed under a key and still there."""
        name = self.store.key("inputs", key)
        for id_ in self.store.redis.zrevrangebylex(name, "+", "-", start=0, num=N_LOOKED_AT):
            try:
                record = self.store.get(text_of(id_))
            except JobMissing:
                self.store.redis.zrem(name, id_)
                continue
            if record.status is JobStatus.SUCCEEDED:
                return record
        return None

    def pin(self, name: str, tag: str, digest: str, *, owner: str = "", by: str = "") -> bool:
        """Let a name and tag stand for a result; answers whether they are new.

        Args:
            name: The name.
            tag: The tag.
            digest: The result.
            owner: The tenant for which it does; empty for all of them.
            by: Id of the key that is used.
        """
        if not owner:
            ResultOwners(self.store).add(digest, ALL)
        keys = [self.pin_key(name, tag, owner), self.list_key]
        given: list[str | int] = [digest, by, MAX_HISTORY, among_all(name, tag, owner)]
        return bool(run_script(self.store.redis, "pin", keys=keys, args=given))

    def find_pin(self, name: str, tag: str, *, owner: str = "") -> FoundPin | None:
        """A tenant's own pin, or else the one that all share."""
        for whose in dict.fromkeys([owner, ""]):
            if history := self.pinned(name, tag, owner=whose):
                return FoundPin(whose, history)
        return None

    def pinned(self, name: str, tag: str, *, owner: str = "") -> list[Pinned]:
        """What a pin stands for and stood for, the newest first."""
        entries = self.store.redis.lrange(self.pin_key(name, tag, owner), 0, -1)
        return [Pinned(**json.loads(text_of(entry))) for entry in entries]

    def pins(self, *, owner: str = "", after: str = "", limit: int) -> list[ListedPin]:
        """What names stand for, in the order of ``name:tag``.

        Args:
            owner: A tenant, for its own and those that all share where it has none of that
                name; empty for those that all share.
            after: Those behind this ``name:tag`` only.
            limit: How many at most.
        """
        self._complete_pins()
        owners: dict[tuple[str, str], str] = {}  # the tenant's own comes last and counts
        for whose in dict.fromkeys(["", owner]):
            low = f"({whose}:{after}" if after else f"[{whose}:"
            found = self.store.redis.zrangebylex(
                self.list_key, low, f"({whose};", start=0, num=limit
            )
            for member in found:
                _, name, tag = text_of(member).split(":")
                owners[name, tag] = whose
        names = sorted(owners, key=":".join)[:limit]
        pipeline = self.store.redis.pipeline(transaction=False)
        for name, tag in names:
            pipeline.lindex(self.pin_key(name, tag, owners[name, tag]), 0)
        return [
            ListedPin(name, tag, owners[name, tag], Pinned(**json.loads(text_of(entry))))
            for (name, tag), entry in zip(names, pipeline.execute(), strict=True)
            if entry
        ]

    def _complete_pins(self) -> None:
        """Put among all pins those of a store of before there was such a list, once."""
        redis = self.store.redis
        if redis.zscore(self.list_key, _COMPLETE) is not None:
            return
        found = [among_all(name, tag, whose) for whose, name, tag in self.all_pins()]
        redis.zadd(self.list_key, dict.fromkeys([*found, _COMPLETE], 0))

    def pinned_digests(self) -> set[str]:
        """Everything that some pin stands for now."""
        redis = self.store.redis
        pipeline = redis.pipeline(transaction=False)
        for key in redis.scan_iter(match=self.store.key("pin", "*"), count=1000):
            pipeline.lindex(key, 0)
        return {json.loads(text_of(entry))["digest"] for entry in pipeline.execute() if entry}

    @property
    def list_key(self) -> str:
        """Where all pins are listed."""
        return self.store.key("pins")

    def all_pins(self) -> Iterator[tuple[str, str, str]]:
        """Owner, name and tag of every pin."""
        before = len(self.store.key("pin", ""))
        for key in self.store.redis.scan_iter(match=self.store.key("pin", "*"), count=1000):
            *owner, name, tag = text_of(key)[before:].split(":")
            yield owner[0].removeprefix("@") if owner else "", name, tag

    def pin_key(self, name: str, tag: str, owner: str) -> str:
        """Where the history of a pin lies."""
        # No name begins with an @.
        return self.store.key("pin", *([f"@{owner}"] if owner else []), name, tag)
