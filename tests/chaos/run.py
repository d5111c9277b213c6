"""Every row of the failure matrix at many moments, and a page of what became of them.

python tests/chaos/run.py                                # all rows, ten moments each
python tests/chaos/run.py --rows "child KILL" "link*"    # some
python tests/chaos/run.py --rows "API KILL" --seeds 0-3  # a moment that the page names

It runs as root, which may mount small file systems, and sets clocks with Debian's libfaketime;
rows that need what is not there are skipped, and the page says so.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from fnmatch import fnmatch
from itertools import product
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / place) for place in ("tests", "clients/python", "service", "worker")]

from redis.exceptions import RedisError  # noqa: E402

from support.chaos.faults import MATRIX, Fault  # noqa: E402
from support.chaos.histories import as_rows  # noqa: E402
from support.chaos.judging import Finding  # noqa: E402
from support.chaos.report import as_page, is_late  # noqa: E402
from support.chaos.stack import Shape, Stack, running_stack  # noqa: E402
from support.chaos.trials import RECOVERY_S, Trial, run_trial  # noqa: E402
from support.chaos.volume import Unavailable  # noqa: E402

OUTPUT = ROOT / "build" / "chaos"
N_INSTANTS = 10
PATIENCE_S = 120.0


def main() -> int:
    """Run the rows and write the page; the exit code tells whether something must not be."""
    given = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # clears up
    chosen = [f for f in MATRIX if any(fnmatch(f.name, row) for row in given.rows)]
    if not chosen:
        raise SystemExit(f"no such row; there are: {', '.join(f.name for f in MATRIX)}")
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir(parents=True)
    began, trials, skipped = time.monotonic(), [], {}
    try:
        for fault, outcome in run_all(chosen, given.seeds or default_seeds(given)):
            if isinstance(outcome, Trial):
                trials.append(outcome)
                keep(outcome, len(trials))
                tell(line(outcome, limit_s=given.limit))
            else:
                skipped[fault.name] = outcome
                tell(f"{fault.name}: skipped, {outcome}")
    finally:
        page = as_page(trials, chosen, skipped=skipped, limit_s=given.limit, about=about(began))
        (OUTPUT / "report.html").write_text(page)
        tell(f"wrote {(OUTPUT / 'report.html').relative_to(ROOT)}")
    wrong = [t for t in trials if t.findings or is_late(t, given.limit)]
    tell(
        f"{len(trials)} faults, {sum(t.n_jobs for t in trials)} histories, wrong: {len(wrong)}"
    )
    return len(wrong) > 0


def about(began: float) -> str:
    """When and where this was."""
    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    machine = f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[1]:.1f}"
    return f"{now}, {machine}; {time.monotonic() - began:.0f} s"


def default_seeds(given: argparse.Namespace) -> list[str]:
    """One for each moment."""
    return [f"{given.seed}-{n}" for n in range(given.instants)]


def run_all(
    faults: Sequence[Fault], seeds: Sequence[str]
) -> Iterator[tuple[Fault, Trial | str]]:
    """Every fault with every seed; those to the same kind of stack share one."""
    for shape in dict.fromkeys(fault.shape for fault in faults):
        yield from run_group(shape, [f for f in faults if f.shape == shape], seeds)


def run_group(
    shape: Shape, faults: Sequence[Fault], seeds: Sequence[str]
) -> Iterator[tuple[Fault, Trial | str]]:
    """Faults to one stack; after a trial that went wrong the next one gets a new one."""
    left = list(faults)
    with ExitStack() as running:
        stack: Stack | None = None
        for seed, fault in product(seeds, faults):  # every row before the next moment
            if fault not in left:
                continue
            try:
                if stack is None:
                    started = running_stack(shape, keep_logs_in=OUTPUT / "logs")
                    stack = running.enter_context(started)
                trial = run_trial(stack, fault, seed, patience_s=PATIENCE_S)
            except Unavailable as reason:
                left.remove(fault)
                yield fault, str(reason)
                continue
            except (OSError, RedisError, RuntimeError, AssertionError) as error:
                trial = broken(fault, seed, error)
            yield fault, trial
            if trial.findings:
                running.close()
                stack = None


def broken(fault: Fault, seed: str, error: Exception) -> Trial:
    """A trial that could not be carried out."""
    finding = Finding("stack", f"the trial broke off: {error!r}")
    return Trial(fault.name, seed, 0.0, None, 0, 0, 0, findings=(finding,))


def keep(trial: Trial, number: int) -> None:
    """Keep what is needed to understand a finding."""
    for finding in trial.findings:
        if finding.history:
            since = min(op.called for op in finding.history if op.called > 0)
            told = {
                "fault": trial.fault,
                "seed": trial.seed,
                "what": finding.what,
                "history": as_rows(finding.history, since=since),
            }
            file = OUTPUT / f"finding-{number}-{finding.thing}.json"
            file.write_text(json.dumps(told, indent=1))
    summary = {k: v for k, v in asdict(trial).items() if k != "findings"}
    with (OUTPUT / "trials.jsonl").open("a") as file:
        file.write(json.dumps(summary | {"findings": [f.what for f in trial.findings]}) + "\n")


def line(trial: Trial, *, limit_s: float) -> str:
    """A trial in a line, with one more for each finding."""
    took = "never" if trial.recovery_s is None else f"{trial.recovery_s:.1f} s"
    late = " (late)" if is_late(trial, limit_s) else ""
    findings = "".join(f"\n    {f.thing}: {f.what}" for f in trial.findings)
    return (
        f"{trial.fault} at {trial.instant_s:.2f} s: recovered after {took}{late}, "
        f"{trial.n_jobs} histories{findings}"
    )


def tell(text: str) -> None:
    """Say what is going on, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", nargs="+", default=["*"], help="names, with * for any text")
    parser.add_argument("--instants", type=int, default=N_INSTANTS, help="of each row")
    parser.add_argument("--seed", default="0", help="other moments")
    parser.add_argument("--seeds", nargs="+", help="these moments only")
    parser.add_argument("--limit", type=float, default=RECOVERY_S, help="seconds to recover")
    return parser


if __name__ == "__main__":
    sys.exit(main())
