"""Latency of the HTTP service, side by side with an empty route of the same server.

A real server process on a real Valkey; one client on one connection asks each route in
turn, so that every route meets the same machine. A re-plan solves a job with as many
target modules as Llama-3-8B has from its stored statistics; the first one of a job reads them.

    python benchmarks/service.py
"""

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.extend(
    str(Path(__file__).parents[1] / place)
    for place in ("clients/python", "service", "worker", "tests")
)
import httpx2

from server import ROWS, running_server, succeeded_job
from support.service import make_model
from support.valkey import running_valkey

Ask = Callable[[], httpx2.Response]
N_FIRST = 20  # jobs that are planned for the first time


def routes(client: httpx2.Client, job_id: str, queued_id: str) -> dict[str, Ask]:
    """What is timed; each call answers."""
    budgets = itertools.cycle(range(4, 17))
    digest = client.get(f"/jobs/{job_id}/result").json()["digest"]
    client.put("/rank-patterns/bench/prod", json={"digest": digest}).raise_for_status()
    same = {"If-None-Match": f'"{digest}"'}
    seeds = itertools.count()

    def calibrate() -> httpx2.Response:
        body = {
            "base_model": "tiny", "dataset": {"source": "inline", "rows": ROWS}, "budget": 8,
            "calibration": {"seed": next(seeds)},
        }  # fmt: skip
        return client.post("/calibrate", json=body)

    return {
        "GET /empty": lambda: client.get("/empty"),
        "GET /jobs/{id}, queued": lambda: client.get(f"/jobs/{queued_id}"),
        "GET /jobs/{id}, with its result": lambda: client.get(f"/jobs/{job_id}"),
        "POST /calibrate": calibrate,
        "POST /jobs/{id}/allocate": lambda: client.post(
            f"/jobs/{job_id}/allocate", json={"budget": next(budgets)}
        ),
        "GET /rank-patterns/{name}/{tag}": lambda: client.get("/rank-patterns/bench/prod"),
        "the same, 304": lambda: client.get("/rank-patterns/bench/prod", headers=same),
    }


def time_in_turns(asks: dict[str, Ask], turns: int) -> dict[str, list[float]]:
    """Milliseconds of every call, the routes in turn."""
    times: dict[str, list[float]] = {name: [] for name in asks}
    for _ in range(turns):
        for name, ask in asks.items():
            began = time.perf_counter()
            answer = ask()
            times[name].append(1000 * (time.perf_counter() - began))
            assert answer.status_code < 400, answer.text
    return times


def first_plans(client: httpx2.Client, jobs: list[str]) -> dict[str, list[float]]:
    """Milliseconds of the first new plan of every job."""
    following = iter(jobs)

    def plan() -> httpx2.Response:
        return client.post(f"/jobs/{next(following)}/allocate", json={"budget": 6})

    return time_in_turns({"POST /jobs/{id}/allocate, first": plan}, len(jobs))


def report(times: dict[str, list[float]], *, n_modules: int, mib: float) -> None:
    """Median and slowest hundredth of every route, and the median against the empty one."""
    empty = statistics.median(times["GET /empty"])
    print(f"{n_modules} target modules, {mib:.1f} MiB of statistics, {os.cpu_count()} cores")
    print(f"{'route':34} {'median':>9} {'p99':>9}   empty/route")
    for name, taken in times.items():
        median = statistics.median(taken)
        p99 = sorted(taken)[int(0.99 * (len(taken) - 1))]
        print(f"{name:34} {median:6.2f} ms {p99:6.2f} ms   {empty / median:6.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=32, help="layers of 7 target modules")
    parser.add_argument("--turns", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running_valkey() as redis_url:
        data_dir = Path(folder)
        make_model(data_dir / "models" / "tiny")
        with running_server(redis_url, data_dir) as client:
            job_id = succeeded_job(client, redis_url, data_dir, options.layers)
            file = next(data_dir.glob("artifacts/*/statistics.safetensors"))
            mib = file.stat().st_size / 2**20
            body = {
                "base_model": "tiny", "dataset": {"source": "inline", "rows": ROWS},
                "budget": 3, "force": True,
            }  # fmt: skip
            queued_id = client.post("/calibrate", json=body).json()["id"]
            asks = routes(client, job_id, queued_id)
            time_in_turns(asks, 3)
            times = time_in_turns(asks, options.turns)
            others = [
                succeeded_job(client, redis_url, data_dir, options.layers, seed=seed)
                for seed in range(1, N_FIRST + 1)
            ]
            times |= first_plans(client, others)
    report(times, n_modules=7 * options.layers, mib=mib)


if __name__ == "__main__":
    main()
