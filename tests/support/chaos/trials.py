"""One trial: a crowd at work, a fault at a moment drawn from a seed, and what became of it all."""

import math
import random
import secrets
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from support.chaos.crowd import Client, Known, Person
from support.chaos.faults import Fault
from support.chaos.histories import now
from support.chaos.job_register import FINAL
from support.chaos.judging import Finding, judge
from support.chaos.stack import Stack
from support.chaos.told import told_wrongly, untold
from support.receiver import Receiver

LATEST_INSTANT_S = 2.5
RECOVERY_S = 30.0
PATIENCE_WITH_API_S = 15.0
SMALL, LARGE = 5, 120
# Batches of the jobs that each client submits, one after the other.
CROWD = {"a": (LARGE, SMALL), "b": (SMALL, SMALL), "c": (SMALL,)}
COUPLE = {"a": (LARGE,), "b": (SMALL,)}


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of one fault at one moment.

    Attributes:
        fault: Which.
        seed: Repeats it.
        instant_s: When, after the crowd began.
        recovery_s: From the fault's end until all jobs had ended, a new one too; ``None`` if
            they had not when patience ended.
        n_jobs: Jobs that were acknowledged: one history each.
        n_keys: Idempotency keys: one history each.
        n_operations: Of all histories.
        ends: How jobs ended.
        findings: What must not be.
        noticed_s: Seconds more that recovery may take.
    """

    fault: str
    seed: str
    instant_s: float
    recovery_s: float | None
    n_jobs: int
    n_keys: int
    n_operations: int
    ends: dict[str, int] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    noticed_s: float = 0.0


def run_trial(
    stack: Stack,
    fault: Fault,
    seed: str,
    *,
    patience_s: float = RECOVERY_S,
    latest_s: float = LATEST_INSTANT_S,
    longest_s: float = math.inf,
    crowd: Mapping[str, tuple[int, ...]] = CROWD,
) -> Trial:
    """Let a fault happen to a stack that is in use, and judge what clients saw.

    Args:
        stack: A running stack, which is left running.
        fault: What is to happen.
        seed: The moment and what clients do are drawn from it.
        patience_s: How long recovery is waited for.
        latest_s: The latest moment.
        longest_s: How long it lasts at most.
        crowd: Clients, and the sizes of the jobs that each submits.
    """
    known, draw = Known(seed, stack.webhook), random.Random(f"{fault.name} {seed}")
    n_deaths = len(stack.deaths())
    persons = [Person(name, stack.urls, known, n_batches=n) for name, n in crowd.items()]
    observer = Client("observer", stack.urls, known)
    for person in persons:
        person.start()
    instant_s = draw.uniform(0, latest_s)
    time.sleep(instant_s)
    _let_happen(stack, fault, draw, hold_s=min(fault.hold_s, longest_s))
    known.is_calm = True
    recovery_s = _wait_for_all(
        observer, known, persons, patience_s=patience_s, receiver=stack.receiver
    )
    for person in persons:
        person.stop()
    findings = [Finding("stack", text) for text in stack.deaths()[n_deaths:]]
    findings += _judge(observer, known)
    findings += told_wrongly(stack.receiver, known.jobs) if stack.receiver else []
    observer.close()
    return _summed_up(fault, seed, instant_s, recovery_s, known, findings)


def _let_happen(stack: Stack, fault: Fault, draw: random.Random, *, hold_s: float) -> None:
    try:
        fault.inject(stack, draw)
        time.sleep(hold_s)
    finally:
        fault.heal(stack, draw)


def _wait_for_all(
    observer: Client,
    known: Known,
    persons: list[Person],
    *,
    patience_s: float,
    receiver: Receiver | None,
) -> float | None:
    """Seconds until all that was begun has ended and was told, and a job that came afterwards."""
    healed = now()
    body, key, probe = known.new_body(SMALL), f"probe-{secrets.token_hex(8)}", ""
    while now() - healed < patience_s:
        probe = probe or observer.submit(body, key=key)
        left = [id_ for id_, status in dict(known.jobs).items() if status not in FINAL]
        for job_id in left:
            observer.look(job_id)
        is_told = not receiver or not untold(receiver, known.jobs)
        if probe and not left and is_told and all(person.is_served for person in persons):
            return now() - healed
        time.sleep(0.2)
    return None


def _judge(observer: Client, known: Known) -> list[Finding]:
    events = {job_id: _events_of(observer, job_id) for job_id in list(known.jobs)}
    for job_id in events:
        for _ in range(2):  # each API
            observer.look(job_id)
            observer.fetch(job_id)
    findings = judge(known.histories.by_thing(), events)
    findings += [Finding("answer", text) for text in known.oddities]
    for job_id, entries in events.items():
        if entries and entries[-1]["status"] == "failed":
            findings.append(Finding(job_id, f"failed: {entries[-1].get('error')}"))
    return findings


def _events_of(observer: Client, job_id: str) -> list[dict[str, Any]] | None:
    """A job's record of itself; an API that is just coming back is waited for."""
    deadline = now() + PATIENCE_WITH_API_S
    while (events := observer.events(job_id)) is None and now() < deadline:
        time.sleep(0.2)
    return events


def _summed_up(
    fault: Fault,
    seed: str,
    instant_s: float,
    recovery_s: float | None,
    known: Known,
    findings: list[Finding],
) -> Trial:
    if recovery_s is None:
        left = {id_: st for id_, st in known.jobs.items() if st not in FINAL}
        findings.append(Finding("stack", f"not recovered in time; still open: {left}"))
    histories = known.histories.by_thing()
    n_jobs = sum(thing.startswith("job_") for thing in histories)
    return Trial(
        fault.name,
        seed,
        instant_s,
        recovery_s,
        n_jobs,
        len(histories) - n_jobs,
        sum(map(len, histories.values())),
        dict(Counter(known.jobs.values())),
        tuple(findings),
        fault.noticed_s,
    )
