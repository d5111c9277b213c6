"""All that DESIGN asks of a GPU, in ten minutes: one table, one JSON.

Needs torch, transformers, peft and safetensors only. Each section has a process and a time limit
of its own; what fails, or is not done in time, becomes a row, and what was found before stays.
Without a GPU the same code runs small shapes on the CPU, whose ratios say nothing.

    python benchmarks/gpu                                   # everything
    python benchmarks/gpu --sections resident streamed
    python benchmarks/gpu --form cpu --out build/gpu.json
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from limits import NAMES, SECONDS
from rows import Row, RowFile

HERE = Path(__file__).parent

LIMIT_S = 570.0
LEAST_S = 10.0  # a section that has less is not started
COLUMNS = {
    "over_bare": "time / bare", "peft_over_it": "PEFT's / its", "of_rate": "of the chip's rate",
    "peak_gib": "peak GiB", "peak_over_bare": "peak / bare", "over_resident": "time / resident",
    "hidden": "copies hidden", "of_bus": "of the bus", "above_two_blocks_gib": "GiB above two blocks",
    "tflops": "TFLOP/s", "gb_per_s": "GB/s",
}  # fmt: skip
SHARES = frozenset({"of_rate", "hidden", "of_bus"})


def run_section(name: str, form: str, seconds: float, room: Path) -> list[Row]:
    """Run one section in a process of its own; what it found, and how it ended if badly."""
    file = RowFile(room / f"{name}.jsonl")
    command = [sys.executable, str(HERE), "--form", form, "--be", name, "--rows", str(room)]
    paths = [str(HERE.parents[1] / place) for place in ("benchmarks", "worker", "tests")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])
    }
    child = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=(room / f"{name}.err").open("w"),
        env=environment, start_new_session=True,
    )  # fmt: skip
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)  # with whatever it has started
        child.wait()
        return [*file.read(), Row(name, "", "", note=f"not done after {seconds:.0f} s")]
    if child.returncode:
        said = (room / f"{name}.err").read_text(errors="replace").strip().splitlines()
        why = said[-1][:300] if said else "it said nothing"
        return [*file.read(), Row(name, "", "", note=f"exit {child.returncode}: {why}")]
    return file.read()


def be_a_section(name: str, form: str, room: Path) -> None:
    """Run one section in this process."""
    import torch
    from forms import FORMS
    from sections import SECTIONS

    if FORMS[form].device == "cpu":
        torch.set_num_threads(1)
    SECTIONS[name](FORMS[form], RowFile(room / f"{name}.jsonl"))


def table(rows: list[Row], *, judged: bool) -> str:
    """The rows as text; columns that nobody fills are left out.

    Goals are stated, and judged where the shapes are those they are for.
    """
    verdicts = {True: ": kept", False: ": MISSED"} if judged else {}
    used = [c for c in COLUMNS if any((row.facts or {}).get(c) is not None for row in rows)]
    heads = ["section", "case", "way", "s", *(COLUMNS[c] for c in used), "goals", "note"]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for row in rows:
        cells = [row.section, row.case, row.way]
        cells.append("" if row.seconds is None else f"{row.seconds:.4f}")
        cells += [_cell(c, (row.facts or {}).get(c)) for c in used]
        goals = [
            f"{COLUMNS[f]} {'<=' if is_most else '>='} {limit:g}{verdicts.get(kept, '')}"
            for f, limit, is_most, kept in row.goals()
        ]
        lines.append(f"| {' | '.join([*cells, '; '.join(goals), row.note])} |")
    return "\n".join(lines)


def _cell(column: str, value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.0%}" if column in SHARES else f"{value:.3g}"


def default_form() -> str:
    """What this machine can run."""
    import torch

    return "gpu" if torch.cuda.is_available() else "cpu"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--form", choices=["gpu", "cpu"], help="by default what there is")
    parser.add_argument("--sections", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds of all together")
    parser.add_argument("--out", type=Path, default=Path("build/gpu.json"))
    parser.add_argument("--be", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.be:
        be_a_section(args.be, args.form, args.rows)
        return
    form, ends = args.form or default_form(), time.monotonic() + args.limit
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="fimlora-gpu-") as room:
        for name in args.sections:
            seconds = min(SECONDS[form][name], ends - time.monotonic())
            if seconds < LEAST_S:
                rows.append(Row(name, "", "", note="no time was left"))
            else:
                print(f"{name}, for {seconds:.0f} s at most", file=sys.stderr, flush=True)
                rows += run_section(name, form, seconds, Path(room))
            args.out.parent.mkdir(parents=True, exist_ok=True)
            found = {"form": form, "rows": [row.to_json() for row in rows]}
            args.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(table(rows, judged=form == "gpu"))
    if form == "cpu":
        print("\nSmall shapes, to see that all of it runs: the goals are for those of a GPU.")
    print(f"\nwrote {args.out}")


if __name__ == "__main__":
    main()
