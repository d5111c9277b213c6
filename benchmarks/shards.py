"""What sharing a job between workers gives, against one of the same workers alone.

Real workers on a real Valkey, the pretrained MiniLM and docstrings of the standard library. Jobs
in one shard and in several take turns on the same workers, each with rows of its own seed; the
digests of both results are compared. Every worker computes with as many threads as are said. With
--cpus each is held to some part of a core, as a container is: where all fit, none is in another's
way, and what is left is what sharing itself costs.

    python benchmarks/shards.py --workers 2 --threads 1
    python benchmarks/shards.py --workers 4 --cpus 0.4
"""

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.extend(
    str(Path(__file__).parents[1] / place)
    for place in (".", "clients/python", "service", "worker", "tests")
)
from demo.base_model import find_minilm
from demo.docstrings import build_rows
from redis import Redis

from cpu_quota import held_to
from fimlora_contract.jobs import Stage
from support.jobs import Jobs, write_jsonl
from support.valkey import running_valkey
from support.workers import running_worker

PATIENCE_S = 3600.0


@dataclass(frozen=True)
class Seconds:
    """How long a job took, and its parts.

    Attributes:
        whole: From being sent to its end, as the client sees it.
        before: Until it is measured: waiting, rows, tokens, the model.
        measuring: Batches, and putting shards together.
        after: Allocating and writing.
    """

    whole: float
    before: float
    measuring: float
    after: float

    @property
    def fixed(self) -> float:
        """What no worker takes off another."""
        return self.whole - self.measuring


def run_job(jobs: Jobs, *, shards: int, seed: int, n_batches: int) -> tuple[Seconds, str]:
    """Run one, and answer how long it took and the digest of its result."""
    began = time.monotonic()
    job_id = submit(jobs, shards=shards, seed=seed, n_batches=n_batches)
    return seconds_of(jobs, job_id, began=began, shards=shards)


def run_apart(jobs: Jobs, turn: int, *, n: int, n_batches: int) -> float:
    """Run jobs in one shard at once, which share nothing but the machine; gives their measuring."""
    began = time.monotonic()
    ids = [submit(jobs, shards=1, seed=turn * 1000 + i, n_batches=n_batches) for i in range(n)]
    found = [seconds_of(jobs, job_id, began=began, shards=1)[0] for job_id in ids]
    return statistics.median(each.measuring for each in found)


def submit(jobs: Jobs, *, shards: int, seed: int, n_batches: int) -> str:
    """Send a job, with rows of its own seed."""
    return jobs.submit(
        model="minilm",
        dataset={"source": "local", "name": "rows.jsonl"},
        calibration={
            "n_batches": n_batches, "batch_size": 16, "max_length": 128, "seed": seed,
            "shards": shards, "head": "fresh",
        },
    )  # fmt: skip


def seconds_of(jobs: Jobs, job_id: str, *, began: float, shards: int) -> tuple[Seconds, str]:
    """Wait for a job, and answer how long it took and the digest of its result."""
    record = jobs.wait_final(job_id, timeout_s=PATIENCE_S)
    whole = time.monotonic() - began
    job = record.to_job()
    assert job.status == "succeeded", job.error
    assert job.result.execution.n_shards == shards
    times = {
        event.progress.stage: int(event.id.partition("-")[0]) / 1000
        for event in reversed(jobs.store.events(job_id, limit=5000))
        if event.progress
    }
    measuring = times[Stage.ALLOCATING] - times[Stage.CALIBRATING]
    before = times[Stage.CALIBRATING] - times[Stage.RESOLVING]
    return Seconds(whole, before, measuring, whole - before - measuring), job.result.digest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each worker")
    parser.add_argument("--batches", type=int, default=64, help="of 16 rows")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--cpus", type=float, help="of each worker, such as 0.4 of a core")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (root / "models").mkdir()
        (root / "models" / "minilm").symlink_to(find_minilm())
        write_jsonl(root / "datasets" / "rows.jsonl", build_rows())
        url = stack.enter_context(running_valkey())
        jobs = Jobs(Redis.from_url(url), root)
        for number in range(options.workers):
            log = root / f"worker-{number}.log"
            threads = {"FIMLORA_TORCH_THREADS": str(options.threads)}
            worker = stack.enter_context(running_worker(url, root, log, **threads))
            if options.cpus is not None:
                pids = (worker.process.pid, *worker.child_pids())
                stack.enter_context(held_to(options.cpus, pids))
        while jobs.redis.hlen("fimlora:workers") < options.workers:
            time.sleep(0.1)
        both = (1, options.workers)
        for shards in both:  # models are loaded then
            run_job(jobs, shards=shards, seed=0, n_batches=options.batches)
        times: dict[int, list[Seconds]] = {shards: [] for shards in both}
        apart, n_equal = [], 0
        for turn in range(1, options.turns + 1):
            digests = set()
            for shards in both if turn % 2 else both[::-1]:
                seconds, digest = run_job(
                    jobs, shards=shards, seed=turn, n_batches=options.batches
                )
                times[shards].append(seconds)
                digests.add(digest)
            n_equal += len(digests) == 1
            if options.cpus is None:
                apart.append(
                    run_apart(jobs, turn, n=options.workers, n_batches=options.batches)
                )
    print(
        f"{options.workers} workers of {options.threads} threads"
        f"{f' held to {options.cpus:g} cores each' if options.cpus else ''}, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}; {options.batches} batches of 16 rows, {options.turns} turns"
    )
    report(times, options.workers)
    if apart:
        report_machine(times, apart, options.workers)
    print(f"equal results, to the last bit: {n_equal} of {options.turns}")


def report(times: dict[int, list[Seconds]], k: int) -> None:
    """Print what k shards give, of the whole job and of its parts, and what stays as it is."""
    for part in ("whole", "before", "measuring", "after"):
        one, several = ([getattr(t, part) for t in times[n]] for n in (1, k))
        ratios = sorted(a / b for a, b in zip(one, several, strict=True))
        given = statistics.median(ratios)
        print(
            f"{part:9} 1 shard {statistics.median(one):6.2f} s, {k} shards "
            f"{statistics.median(several):6.2f} s: {given:.2f} x ({ratios[0]:.2f} - "
            f"{ratios[-1]:.2f}), {given / k:.2f} k"
        )
    fixed = statistics.median(t.fixed / t.whole for t in times[1])
    print(
        f"of one shard's job {fixed:.0%} is no measuring, so {k} workers could give "
        f"{1 / (fixed + (1 - fixed) / k):.2f} x of the whole at most"
    )


def report_machine(times: dict[int, list[Seconds]], apart: list[float], k: int) -> None:
    """Print how much more of unrelated work the machine does at once, and how much of it shards give."""
    turns = zip(times[1], times[k], apart, strict=True)
    shared_by_machine = [
        (one.measuring / several.measuring, k * one.measuring / at_once)
        for one, several, at_once in turns
    ]
    of_machine = statistics.median(machine for _, machine in shared_by_machine)
    share = statistics.median(shared / machine for shared, machine in shared_by_machine)
    print(
        f"the machine itself gives {of_machine:.2f} x: so many times as much is measured by "
        f"{k} workers at once, each with a job of its own; shards give {share:.0%} of it"
    )


if __name__ == "__main__":
    main()
