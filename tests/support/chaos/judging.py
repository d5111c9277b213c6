"""What the histories of one trial say: who saw what could not be, what was lost, what failed."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from support.chaos.histories import Operation, unseen
from support.chaos.job_register import FINAL, MAY_FOLLOW, JobRegister, KeyRegister
from support.chaos.linearizability import Model, check


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that must not be.

    Attributes:
        thing: The job or key.
        what: In words.
        history: All that is known of it.
    """

    thing: str
    what: str
    history: tuple[Operation, ...] = ()


def commits_of(events: Sequence[Mapping[str, Any]]) -> list[Operation]:
    """What workers and the reaper made of a job, from its own record of it.

    That it was submitted and canceled is told by those who did it.
    """
    changes = [event for event in events if event["type"] == "status"]
    return [
        unseen(event["job_id"], "commit", (event["status"], event["attempt"]), by="worker")
        for before, event in itertools.pairwise(changes)
        if event["status"] != "canceling"
        and (event["status"] != "canceled" or before["status"] == "canceling")
    ]


def overtaken_writes(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """Entries that an attempt wrote which was no longer, or not yet, the current one."""
    found: list[str] = []
    status, attempt = "", 1
    for event in events:
        if event["type"] == "progress":
            if event["attempt"] != attempt or status not in {"running", "canceling"}:
                found.append(f"progress of attempt {event['attempt']} while {status} {attempt}")
        else:
            if status in FINAL:
                found.append(f"{event['status']} after {status}")
            if event["attempt"] < attempt:
                found.append(f"attempt {event['attempt']} after attempt {attempt}")
            status, attempt = event["status"], event["attempt"]
    return found


def judge(
    histories: Mapping[str, Sequence[Operation]],
    events: Mapping[str, Sequence[Mapping[str, Any]] | None],
) -> list[Finding]:
    """Everything that must not be, in histories of jobs and of keys."""
    found: list[Finding] = []
    for thing, seen in histories.items():
        if not thing.startswith("job_"):
            found += _explain(thing, list(seen), KeyRegister())
            continue
        known = events.get(thing)
        if known is None:
            found.append(Finding(thing, "acknowledged, and lost", tuple(seen)))
            continue
        found += _explain(thing, [*seen, *commits_of(known)], JobRegister())
        found += [Finding(thing, what, tuple(seen)) for what in overtaken_writes(known)]
    return found


def _explain(thing: str, history: list[Operation], model: Model) -> list[Finding]:
    verdict = check(history, model)
    if verdict.holds:
        return []
    stuck = "; ".join(f"{op.kind} {op.answer} by {op.by or 'nobody'}" for op in verdict.stuck)
    return [Finding(thing, f"not linearizable: {stuck}", tuple(history))]


__all__ = ["FINAL", "MAY_FOLLOW", "Finding", "commits_of", "judge", "overtaken_writes"]
