"""Requests made from the API's own description, to the real service: `make fuzz`.

python tests/fuzz/api/run.py --cases 10000 --seed 1
"""

import argparse
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
sys.path[:0] = [str(ROOT / place) for place in ("tests", "clients/python", "service", "worker")]
# By the name of their folder and not of this one, where a file of Python's may be hidden.
sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != HERE]

from fuzz.api.fuzzing import fuzz  # noqa: E402


def main() -> int:
    """Run, and say what was found; 1 if something was."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = fuzz(cases=o.cases, seed=o.seed, folder=Path(folder), thorough=True)
    summary = f"{outcome.n_cases} requests, {len(outcome.faults)} faults"
    sys.stdout.write("\n".join([outcome.report, summary, *outcome.faults, ""]))
    return int(bool(outcome.faults) or outcome.n_cases < o.cases)


if __name__ == "__main__":
    sys.exit(main())
