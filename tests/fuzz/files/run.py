"""Damaged files of every kind through service and worker: `make fuzz-files`.

python tests/fuzz/files/run.py                      # 2,000 of each kind, from a fixed seed
python tests/fuzz/files/run.py csv --files 100 --seed 7

Each kind has a process of its own: what crashes it, or holds it for good, is counted and the
next file is tried. It stops by itself, and its exit code tells of anything but 0 faults.
"""

import argparse
import json
import logging
import math
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
sys.path[:0] = [str(ROOT / place) for place in ("tests", "clients/python", "service", "worker")]
# By the name of their folder and not of this one, where a file of Python's may be hidden.
sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != HERE]

from fuzz.files.bench import Fault, open_bench  # noqa: E402
from fuzz.files.kinds import KINDS, attempt, find_kind  # noqa: E402
from fuzz.files.watched import watched  # noqa: E402
from support.valkey import running_valkey  # noqa: E402

FILES = 2_000
MOST_NOTES = 30
# A file that takes longer holds a thread of the service, or a worker.
LONGEST_S = 120.0
MOST_GROWTH = 1 << 30


@dataclass
class Row:
    """What became of the files of a kind."""

    kind: str
    tried: int = 0
    accepted: int = 0
    refused: int = 0
    faults: int = 0
    crashes: int = 0
    hangs: int = 0
    too_large: int = 0
    slowest_s: float = 0.0
    most_mib: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def is_wrong(self) -> bool:
        """Whether any file was neither accepted nor refused, or took too much."""
        return bool(self.faults + self.crashes + self.hangs + self.too_large)

    def note(self, found: dict[str, Any]) -> None:
        """Count what a child says of a file."""
        self.tried += 1
        self.slowest_s = max(self.slowest_s, found["seconds"])
        self.most_mib = max(self.most_mib, found["growth"] >> 20)
        if found["fault"]:
            self.faults += 1
            self.notes.append(f"{found['number']}: {found['fault']}")
            return
        if found["growth"] > MOST_GROWTH:
            self.too_large += 1
            self.notes.append(f"{found['number']}: {found['growth'] >> 20} MiB")
        self.accepted += found["accepted"]
        self.refused += not found["accepted"]


def main() -> int:
    """Try the files and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kinds", nargs="*", help=f"of {[kind.name for kind in KINDS]}")
    parser.add_argument("--files", type=int, default=FILES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=math.inf, help="of each kind, at most")
    parser.add_argument("--at-once", type=int, default=os.cpu_count(), help="kinds")
    parser.add_argument("--jobs", type=int, default=FILES, help="run of what is accepted")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    names = given.kinds or [kind.name for kind in KINDS]
    if unknown := sorted({*names} - {kind.name for kind in KINDS}):
        parser.error(f"unknown: {', '.join(unknown)}")
    if given.child is not None:
        return be_child(names[0], given)
    with ThreadPoolExecutor(given.at_once) as kinds:
        rows = [*kinds.map(partial(try_kind, given=given), names)]
    tell(table(rows, seed=given.seed))
    return any(row.is_wrong for row in rows)


def try_kind(name: str, given: argparse.Namespace) -> Row:
    """Try the files of a kind, in as many processes as it takes."""
    row, number, end = Row(name), 0, time.monotonic() + given.seconds
    while number < given.files and time.monotonic() < end:
        child = _start(name, given, first=number)
        try:
            for found in _lines(child, until=end):
                row.note(found)
                number = found["number"] + 1
            if number < given.files and time.monotonic() < end:
                row.crashes += child.wait() is not None
                row.notes.append(f"{number}: the process ended with {child.returncode}")
                number += 1
        except TimeoutError:
            row.hangs += 1
            row.notes.append(f"{number}: no answer within {LONGEST_S:g} s")
            number += 1
        finally:
            child.kill()
            child.wait()
    tell(f"{name}: {row.tried} files")
    return row


def _start(name: str, given: argparse.Namespace, *, first: int) -> "subprocess.Popen[str]":
    command = [
        sys.executable, str(HERE / "run.py"), name, "--child", str(first),
        "--files", str(given.files), "--seed", str(given.seed), "--jobs", str(given.jobs),
    ]  # fmt: skip
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
    )


def _lines(child: "subprocess.Popen[str]", *, until: float) -> Iterator[dict[str, Any]]:
    """What a child says, for as long as it goes on saying something.

    Raises:
        TimeoutError: It is at one file for too long.
    """
    said: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert child.stdout
        for line in child.stdout:
            said.put(line)
        said.put(None)

    threading.Thread(target=read, daemon=True).start()
    while time.monotonic() < until:
        try:
            line = said.get(timeout=LONGEST_S)
        except queue.Empty:
            raise TimeoutError from None
        if line is None:
            return
        yield json.loads(line)


def be_child(name: str, given: argparse.Namespace) -> int:
    """Try files from a number on, and say of each what became of it."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print, and so do their processes
    kind = find_kind(name)
    with (
        tempfile.TemporaryDirectory(prefix="fuzz-", dir="/tmp") as folder,
        running_valkey() as url,
        open_bench(Path(folder), url, max_jobs=given.jobs) as bench,
    ):
        for number in range(given.child, given.files):
            fault, accepted = "", False
            with watched() as cost:
                try:
                    accepted = attempt(kind, number, bench, seed=given.seed)
                except Fault as error:
                    fault = str(error)
                except Exception as error:
                    fault = f"{type(error).__name__}: {error}"
            found = {
                "number": number, "accepted": accepted, "fault": fault[:1000],
                "seconds": round(cost.seconds, 2), "growth": cost.growth,
            }  # fmt: skip
            out.write(json.dumps(found) + "\n")
            out.flush()
    return 0


def table(rows: Sequence[Row], *, seed: int) -> str:
    """What became of the files, a line for each kind, and each that is wrong."""
    head = (
        f"{'kind':<12} {'files':>6} {'accepted':>9} {'refused':>8} {'faults':>7} {'crashes':>8} "
        f"{'hangs':>6} {'too large':>10} {'slowest':>8} {'most memory':>12}"
    )
    lines = [
        f"{row.kind:<12} {row.tried:>6} {row.accepted:>9} {row.refused:>8} {row.faults:>7} "
        f"{row.crashes:>8} {row.hangs:>6} {row.too_large:>10} {row.slowest_s:>6.1f} s "
        f"{row.most_mib:>8} MiB"
        for row in rows
    ]
    notes = [f"{row.kind} {note}" for row in rows for note in row.notes[:MOST_NOTES]]
    return "\n".join([f"seed {seed}", head, *lines, *notes])


def tell(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
