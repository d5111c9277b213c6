"""Check families of models, each in a process and a time limit of its own.

python tests/families/run.py               # all of them; writes docs/families.md
python tests/families/run.py llama qwen3   # some, by model type or full name: their lines
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / place) for place in ("tests", "clients/python", "service", "worker")]
if __name__ == "__main__":  # before the hub's library is imported, and for this process alone
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

from families.checks import Found, check_family  # noqa: E402
from families.page import PAGE, update  # noqa: E402
from families.registry import FAMILIES, Family  # noqa: E402

TIME_LIMIT_S = 240.0
# As many processes as the smallest machine we know has cores; each computes on one.
N_PROCESSES = 2
_FORK = multiprocessing.get_context("fork")  # what is imported need not be imported again


def main() -> int:
    """Check and, if all were checked, write the page; the exit code tells of wrong ones."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="such as llama, or bert/causal_lm"
    )
    names = parser.parse_args().names
    chosen = [f for f in FAMILIES.values() if not names or {f.name, f.model_type} & {*names}]
    known = {name for f in FAMILIES.values() for name in (f.name, f.model_type)}
    if unknown := sorted({*names} - known):
        parser.error(f"unknown: {', '.join(unknown)}")
    began, found = time.monotonic(), {}
    for number, result in enumerate(check_all(chosen), 1):
        found[result.name] = result
        tell(f"[{number}/{len(chosen)}] {line(result, full=bool(names))}")
    wrong = [name for name, result in found.items() if result.is_wrong]
    tell(f"{len(found)} families in {time.monotonic() - began:.0f} s, wrong: {len(wrong)}")
    update(found)
    tell(f"wrote {PAGE.relative_to(ROOT)}")
    return len(wrong) > 0


def line(result: Found, *, full: bool) -> str:
    """A family in a line, or with a line for each check that is not right."""
    if result.is_right:
        return f"{result.name}: right"
    if not full:
        return f"{result.name}: " + "; ".join(f"{k} {v[:90]}" for k, v in result.not_right())
    return f"{result.name}:" + "".join(f"\n    {k}: {v}" for k, v in result.not_right())


@dataclass
class _Running:
    """A family that is being checked."""

    family: Family
    room: tempfile.TemporaryDirectory[str]
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.ours, theirs = _FORK.Pipe(duplex=False)
        arguments = (self.family, Path(self.room.name), theirs)
        self.process = _FORK.Process(target=_check, args=arguments, daemon=True)
        self.process.start()
        theirs.close()

    def result(self) -> Found | None:
        """What became of it; nothing while it runs."""
        is_late = time.monotonic() - self.began > TIME_LIMIT_S
        if not self.ours.poll() and self.process.is_alive() and not is_late:
            return None
        try:
            found: Found = self.ours.recv() if self.ours.poll() else self._lost(is_late)
        except EOFError:
            found = self._lost(is_late)
        self.process.kill()
        self.process.join()
        self.room.cleanup()
        return found

    def _lost(self, is_late: bool) -> Found:
        why = f"not done after {TIME_LIMIT_S:.0f} s" if is_late else "the process has died"
        return lost(self.family, why)


def lost(family: Family, why: str) -> Found:
    """What is said of a family whose checks did not come to an end."""
    said = {"autograd": f"wrong: {why}"}
    return Found(family.name, family.model_class.__name__, verdicts=said)


def check_all(families: Sequence[Family], *, n_processes: int = N_PROCESSES) -> Iterator[Found]:
    """Check families side by side; results come as they are ready."""
    waiting, running = list(families), list[_Running]()
    while waiting or running:
        while waiting and len(running) < n_processes:
            room = tempfile.TemporaryDirectory(prefix="fimlora-family-")
            running.append(_Running(waiting.pop(0), room))
        for one in list(running):
            if (found := one.result()) is not None:
                running.remove(one)
                yield found
        time.sleep(0.05)


def _check(family: Family, room: Path, answer: "Connection[Found, Found]") -> None:
    """Check one family, in a process of its own."""
    import torch
    import transformers

    torch.set_num_threads(1)
    with Path(os.devnull).open("w") as nowhere:  # what models say while they load
        os.dup2(nowhere.fileno(), sys.stderr.fileno())
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        answer.send(check_family(family, room))
    except Exception as error:
        answer.send(lost(family, f"{type(error).__name__}: {error}"))


def tell(text: str) -> None:
    """Say what is going on, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
