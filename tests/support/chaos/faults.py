"""The failure matrix: what can happen to the stack, and how it is brought about and ended."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from redis import Redis
from rq.registry import StartedJobRegistry

from fimlora_jobs.attempts import QUEUE_NAME
from support.chaos.links import (
    BLACK_HOLE,
    CUT,
    FAIR,
    HALF_OPEN,
    NARROW,
    SLOW,
    Link,
    Weather,
)
from support.chaos.processes import Kept
from support.chaos.stack import Shape, Stack
from support.chaos.volume import Unavailable

KILL, TERM, STOP, CONT = signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP, signal.SIGCONT
Step = Callable[[Stack, random.Random], object]
ONE = Shape()
TWO_WORKERS = Shape(n_workers=2)
CLOCKS = Shape(has_clocks=True)
TELLING = Shape(has_receiver=True)
STALL_S = 45
IMPATIENT = Shape(worker_env=(("FIMLORA_STALL_S", str(STALL_S)),))


def nothing(stack: Stack, draw: random.Random) -> None:
    """What ends by itself needs no end."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One row of the matrix.

    Attributes:
        name: What happens, to what.
        inject: Brings it about.
        heal: Ends it.
        hold_s: How long it lasts.
        shape: The stack that it happens to.
        is_quick: Whether it has a short form: its end is not waited for by a lease, and no other
            fault is much like it.
        noticed_s: Seconds more that recovery may take, where a watchdog alone notices it.
    """

    name: str
    inject: Step
    heal: Step = nothing
    hold_s: float = 0.5
    shape: Shape = ONE
    is_quick: bool = True
    noticed_s: float = 0.0


# Processes


def _child(worker: Kept) -> int:
    deadline = time.monotonic() + 20
    while not (children := worker.children):
        assert time.monotonic() < deadline, f"{worker.name} has no child"
        time.sleep(0.02)
    return children[0]


def _signal_child(number: signal.Signals, stack: Stack, _: random.Random) -> None:
    os.kill(_child(stack.workers[0]), number)


def _one(kind: str, stack: Stack) -> list[Kept]:
    return {"worker": stack.workers[:1], "api": stack.apis[:1], "valkey": [stack.valkey]}[kind]


def _end(kind: str, number: signal.Signals, hold: bool, stack: Stack, _: random.Random) -> None:
    for process in _one(kind, stack):
        process.end(number, hold=hold)


def _send(kind: str, number: signal.Signals, stack: Stack, _: random.Random) -> None:
    for process in _one(kind, stack):
        process.send(number)


def _start_all(stack: Stack, _: random.Random) -> None:
    for process in stack.processes:
        process.start()


def _kill_all(stack: Stack, _: random.Random) -> None:
    for process in stack.processes:
        process.end(KILL, hold=True)


def _end_apis(stack: Stack, _: random.Random) -> None:
    for process in stack.apis:
        process.end(KILL)


def _stop_worker_and_child(stack: Stack, _: random.Random) -> None:
    child = _child(stack.workers[0])
    stack.workers[0].send(STOP)
    os.kill(child, STOP)


def _continue_worker_and_child(stack: Stack, _: random.Random) -> None:
    os.kill(_child(stack.workers[0]), CONT)
    stack.workers[0].send(CONT)


# Valkey


def _configure(name: str, value: str, stack: Stack, _: random.Random) -> None:
    with stack.store() as redis:
        redis.config_set(name, value)


def _command(words: str, stack: Stack, _: random.Random) -> None:
    with stack.store() as redis:
        redis.execute_command(*words.split())


def _lose_popped(stack: Stack, _: random.Random) -> None:
    """As a worker does that dies between taking an attempt and starting it."""
    with stack.store() as redis:
        redis.lpop(f"rq:queue:{QUEUE_NAME}")
    stack.workers[0].send(CONT)


def _clean_up_at_once(stack: Stack, _: random.Random) -> None:
    def clean() -> None:
        with Redis(unix_socket_path=str(stack.socket)) as redis:
            registry = StartedJobRegistry(QUEUE_NAME, connection=redis, serializer="json")
            registry.cleanup()

    threads = [threading.Thread(target=clean) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# Disks


def _volume(name: str, what: str, stack: Stack, _: random.Random) -> None:
    getattr(getattr(stack, f"{name}_volume"), what)()


# Links


def _links(between: str, stack: Stack) -> list[Link]:
    found = {
        "api": [stack.api_link], "worker": [stack.worker_link], "receiver": [stack.receiver_link],
    }  # fmt: skip
    return [link for link in found.get(between, stack.client_links) if link]


def _weather(between: str, weather: Weather, stack: Stack, _: random.Random) -> None:
    for link in _links(between, stack):
        link.become(weather)


WEATHERS = {
    "slow": SLOW, "narrow": NARROW, "cut": CUT, "a black hole": BLACK_HOLE,
    "half-open": HALF_OPEN,
}  # fmt: skip
BETWEEN = {"client": "clients and API", "api": "API and Valkey", "worker": "worker and Valkey"}
# Each weather once, and every link.
SHORT_LINKS = {
    ("client", "narrow"), ("client", "cut"), ("api", "half-open"), ("worker", "slow"),
    ("worker", "a black hole"),
}  # fmt: skip
LINKS = [
    Fault(
        f"link between {ends} {how}",
        partial(_weather, between, weather),
        partial(_weather, between, FAIR),
        hold_s=2.5,
        is_quick=(between, how) in SHORT_LINKS,
    )
    for between, ends in BETWEEN.items()
    for how, weather in WEATHERS.items()
]

RECEIVERS = [
    Fault(
        f"webhook receiver {how}",
        partial(_weather, "receiver", weather),
        partial(_weather, "receiver", FAIR),
        hold_s=3.0,
        shape=TELLING,
        is_quick=False,
    )
    for how, weather in {
        "down": CUT,
        "hangs": BLACK_HOLE,
        "loses its answers": HALF_OPEN,
    }.items()
]

# Clocks


def _step_clock(kind: str, seconds: int, stack: Stack, _: random.Random) -> None:
    for process in _one(kind, stack):
        stack.set_clock(process, seconds)
    expected_s = seconds if kind == "valkey" else 0
    deadline = time.monotonic() + 5
    with stack.store() as redis:
        while abs((found_s := redis.time()[0] - time.time()) - expected_s) > 5:
            if time.monotonic() > deadline:
                raise Unavailable(f"the clock of Valkey is {found_s:+.0f} s off")
            time.sleep(0.05)


CLOCK_STEPS = [
    Fault(
        f"clock of {kind} steps {seconds:+d} s",
        partial(_step_clock, kind, seconds),
        partial(_step_clock, kind, 0),
        hold_s=2.0,
        shape=CLOCKS,
        is_quick=False,
    )
    for kind in ("worker", "api", "valkey")
    for seconds in (3600, -3600)
]

PROCESSES = [
    Fault("child KILL", partial(_signal_child, KILL)),
    Fault("child TERM", partial(_signal_child, TERM), is_quick=False),
    Fault("child STOP, CONT", partial(_signal_child, STOP), partial(_signal_child, CONT), 2.0),
    Fault(
        "child hangs for good",
        partial(_signal_child, STOP),
        hold_s=STALL_S + 1.0,  # until the watchdog has seen it
        shape=IMPATIENT,
        is_quick=False,
        noticed_s=STALL_S,  # one that was idle is silent from its next order on
    ),
    Fault("worker KILL", partial(_end, "worker", KILL, False), is_quick=False),
    Fault("worker TERM", partial(_end, "worker", TERM, False), is_quick=False),
    Fault(
        "worker STOP, CONT",
        partial(_send, "worker", STOP),
        partial(_send, "worker", CONT),
        hold_s=2.0,
    ),
    Fault(
        "one of two workers KILL",
        partial(_end, "worker", KILL, True),
        _start_all,
        shape=TWO_WORKERS,
        is_quick=False,
    ),
    Fault(
        "child of one of two workers KILL",
        partial(_signal_child, KILL),
        shape=TWO_WORKERS,
        is_quick=False,
    ),
    Fault(
        "Valkey KILL beside two workers, back at once",
        partial(_end, "valkey", KILL, False),
        shape=TWO_WORKERS,
        is_quick=False,
    ),
    Fault(
        "one of two workers stops until its lease is over, and goes on",
        _stop_worker_and_child,
        _continue_worker_and_child,
        hold_s=28.0,
        shape=TWO_WORKERS,
        is_quick=False,
    ),
    Fault("API KILL", partial(_end, "api", KILL, False), is_quick=False),
    Fault("API TERM", partial(_end, "api", TERM, False)),
    Fault("API STOP, CONT", partial(_send, "api", STOP), partial(_send, "api", CONT), 2.0),
    Fault("both APIs KILL", _end_apis),
    Fault("Valkey KILL, back at once", partial(_end, "valkey", KILL, False), is_quick=False),
    Fault("Valkey KILL, away", partial(_end, "valkey", KILL, True), _start_all, 4.0),
    Fault(
        "Valkey TERM, away",
        partial(_end, "valkey", TERM, True),
        _start_all,
        hold_s=4.0,
        is_quick=False,
    ),
    Fault(
        "Valkey STOP, CONT", partial(_send, "valkey", STOP), partial(_send, "valkey", CONT), 4.0
    ),
    Fault("all KILL at once", _kill_all, _start_all, 1.0, is_quick=False),
]
REFUSALS = [
    Fault(
        "Valkey at maxmemory",
        partial(_configure, "maxmemory", "1mb"),
        partial(_configure, "maxmemory", "0"),
        hold_s=3.0,
    ),
    Fault(
        "Valkey demoted, read-only",
        partial(_command, "REPLICAOF 127.0.0.1 1"),
        partial(_command, "REPLICAOF NO ONE"),
        hold_s=3.0,
    ),
    Fault("Valkey cuts all connections", partial(_command, "CLIENT KILL TYPE normal")),
    Fault("Valkey forgets its scripts", partial(_command, "SCRIPT FLUSH SYNC")),
    Fault(
        "Valkey's disk full",
        partial(_volume, "store", "fill"),
        partial(_volume, "store", "clear"),
        hold_s=3.0,
    ),
    Fault(
        "data folder full",
        partial(_volume, "data", "fill"),
        partial(_volume, "data", "clear"),
        hold_s=3.0,
    ),
    Fault(
        "data folder read-only",
        partial(_volume, "data", "freeze"),
        partial(_volume, "data", "thaw"),
        hold_s=3.0,
    ),
]
QUEUE = [
    Fault(
        "death between pop and start",
        partial(_send, "worker", STOP),
        _lose_popped,
        hold_s=1.5,
        is_quick=False,
    ),
    Fault("six registries cleaned up at once", _clean_up_at_once),
]
MATRIX = [*PROCESSES, *REFUSALS, *QUEUE, *LINKS, *RECEIVERS, *CLOCK_STEPS]
