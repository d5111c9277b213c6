"""What a job costs on a warm worker beside its own measurement, stage by stage.

The embedded stack, the pretrained MiniLM and docstrings of the standard library, as in the
demonstration: a first job that loads the model, then jobs with other seeds that measure
anew. Times are those of the job's own events, so they hold queueing and committing too.

    python benchmarks/warm_job.py
"""

import argparse
import itertools
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

sys.path.extend(
    str(Path(__file__).parents[1] / place)
    for place in (".", "clients/python", "service", "worker")
)
from demo.base_model import find_minilm
from demo.docstrings import build_rows
from demo.stack import running_stack

from fimlora_client import Client
from fimlora_contract.jobs import JobEvent

MEASURING = "calibrating"


def stage_times(events: list[JobEvent]) -> dict[str, float]:
    """Seconds in each stage, from one event to the next; ids begin with milliseconds."""
    times: dict[str, float] = defaultdict(float)
    for event, following in itertools.pairwise(events):
        stage = event.progress.stage.value if event.progress else event.status.value
        times[stage] += (_ms(following) - _ms(event)) / 1000
    return times


def _ms(event: JobEvent) -> int:
    return int(event.id.partition("-")[0])


def run_job(client: Client, dataset: str, seed: int) -> dict[str, float]:
    """Calibrate with a seed of its own and time the stages."""
    handle = client.calibrate(
        base_model="local:minilm",
        dataset=dataset,
        budget=8,
        calibration={"seed": seed, "batch_size": 16, "max_length": 128},
    )
    events = list(handle.events())
    handle.wait()  # raises if it failed
    return stage_times(events)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=5, help="warm jobs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder)
        (data_dir / "models").mkdir()
        (data_dir / "models" / "minilm").symlink_to(find_minilm())
        with running_stack(data_dir) as stack, Client(stack.url) as client:
            dataset = client.datasets.upload(build_rows()).id
            first = run_job(client, dataset, 0)
            warm = [run_job(client, dataset, seed) for seed in range(1, options.jobs + 1)]
    print(f"{'stage':14} {'first job':>10} {f'median of {len(warm)} warm':>18}")
    for stage in first:
        median = statistics.median(times[stage] for times in warm)
        print(f"{stage:14} {first[stage]:8.2f} s {median:16.2f} s")
    others = statistics.median(sum(t.values()) - t[MEASURING] for t in warm)
    share = statistics.median(1 - t[MEASURING] / sum(t.values()) for t in warm)
    print(f"all but {MEASURING} of a warm job: {others:.2f} s, {share:.0%} of the job")


if __name__ == "__main__":
    main()
