"""The HTTP service with ten thousand jobs on record, and under load from several clients.

Each route is asked with a few jobs on record and with many, on the same server; then many
connections at once ask one route after the other, an empty one first. Ratios of one run.

    python benchmarks/many_jobs.py
"""

import argparse
import http.client
import itertools
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.extend(
    str(Path(__file__).parents[1] / place)
    for place in ("clients/python", "service", "worker", "tests")
)
import httpx2
from redis import Redis

from fimlora_jobs.queue import RqTransport
from fimlora_jobs.reaper import requeue_orphans
from fimlora_jobs.store import JobStore
from server import ROWS, running_server, succeeded_job
from support.service import make_model
from support.valkey import running_valkey

BODY = {"base_model": "tiny", "dataset": {"source": "inline", "rows": ROWS}, "budget": 8}
Request = tuple[str, str, bytes | None]


def distinct_bodies() -> Iterator[bytes]:
    """Requests of which none equals another."""
    for seed in itertools.count():
        yield json.dumps(BODY | {"calibration": {"seed": seed}}).encode()


def fill(client: httpx2.Client, redis: Redis, n: int) -> None:
    """Put jobs on record and into the queue, as the service does."""
    store, transport = JobStore(redis), RqTransport(redis)
    template = store.get(client.post("/calibrate", json=BODY).raise_for_status().json()["id"])
    began = time.monotonic()
    for done in range(1, n + 1):
        job_id = store.new_id()
        record = store.create(
            job_id,
            request=template.request,
            resolved=template.resolved,
            digest=f"sha256:{done:064x}",
        )
        transport.enqueue(record.id, 1)
        if done % 1000 == 0:
            left = (time.monotonic() - began) * (n - done) / done
            print(f"\r{done} of {n} jobs queued, {left:.0f} s left ", end="", file=sys.stderr)
    print(file=sys.stderr)


def requests_of(job_id: str) -> dict[str, Callable[[], Request]]:
    """What is asked, under the name of its route."""
    bodies = distinct_bodies()
    return {
        "GET /empty": lambda: ("GET", "/empty", None),
        "GET /jobs/{id}": lambda: ("GET", f"/jobs/{job_id}", None),
        "GET /jobs": lambda: ("GET", "/jobs?limit=20", None),
        "POST /calibrate": lambda: ("POST", "/calibrate", next(bodies)),
    }


def ask(connection: http.client.HTTPConnection, request: Request) -> float:
    """Milliseconds until the whole answer is there."""
    method, path, body = request
    began = time.perf_counter()
    connection.request(method, path, body, {"content-type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    assert answer.status < 400, answer.status
    return 1000 * (time.perf_counter() - began)


def in_turns(address: str, job_id: str, turns: int) -> dict[str, float]:
    """Median milliseconds of each route, asked in turn on one connection."""
    connection = http.client.HTTPConnection(address)
    routes, times = requests_of(job_id), {name: list[float]() for name in requests_of(job_id)}
    for _ in range(turns):
        for name, make in routes.items():
            times[name].append(ask(connection, make()))
    connection.close()
    return {name: statistics.median(taken) for name, taken in times.items()}


def under_load(
    address: str, make: Callable[[], Request], *, connections: int, seconds: float
) -> list[float]:
    """Milliseconds of every answer while several connections keep asking."""
    times: list[float] = []
    lock, end = threading.Lock(), time.monotonic() + seconds

    def keep_asking() -> None:
        connection, own = http.client.HTTPConnection(address), []
        while time.monotonic() < end:
            with lock:
                request = make()
            own.append(ask(connection, request))
        connection.close()
        with lock:
            times.extend(own)

    threads = [threading.Thread(target=keep_asking) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


def report_sizes(
    address: str, client: httpx2.Client, redis: Redis, o: argparse.Namespace
) -> str:
    """Latencies and memory with few jobs and with many; answers a job's id."""
    job_id = client.post("/calibrate", json=BODY | {"budget": 3}).json()["id"]
    in_turns(address, job_id, 5)
    few, n_few = in_turns(address, job_id, o.turns), redis.zcard("fimlora:jobs")
    before = redis.info("memory")["used_memory"]
    fill(client, redis, o.jobs)
    used = redis.info("memory")["used_memory"] - before
    many, n_many = in_turns(address, job_id, o.turns), redis.zcard("fimlora:jobs")
    machine = many["GET /empty"] / few["GET /empty"]
    print(
        f"{'route':18} {n_few:>7} jobs {n_many:>7} jobs   many/few, against the empty route's"
    )
    for name, before_ms in few.items():
        ratio = many[name] / before_ms / machine
        print(f"{name:18} {before_ms:9.2f} ms {many[name]:9.2f} ms   {ratio:6.2f}")
    print(f"memory of a queued job in the server: {used / o.jobs / 1024:.1f} KiB")
    redis.delete("fimlora:lock:reaper")
    began = time.perf_counter()
    requeue_orphans(JobStore(redis), RqTransport(redis), on_reaped=print)
    print(f"one look for lost jobs: {time.perf_counter() - began:.2f} s\n")
    return str(job_id)


def report_load(address: str, queued_id: str, finished_id: str, o: argparse.Namespace) -> None:
    """Throughput and latency of each route with many connections."""
    routes = requests_of(queued_id)
    del routes["GET /jobs"]
    routes["GET /jobs/{id}, with its result"] = requests_of(finished_id)["GET /jobs/{id}"]
    times: dict[str, list[float]] = {name: [] for name in routes}
    for _ in range(o.rounds):  # in turns, so that every route meets the same machine
        for name, make in routes.items():
            times[name] += under_load(address, make, connections=o.connections, seconds=1)
    empty = len(times["GET /empty"])
    print(f"{o.connections} connections at once, {o.rounds} times 1 s each")
    print(f"{'route':32} {'a second':>9} {'median':>9} {'p99':>9}   of empty")
    for name, taken in times.items():
        rate, p99 = len(taken) / o.rounds, sorted(taken)[int(0.99 * (len(taken) - 1))]
        median = statistics.median(taken)
        share = len(taken) / empty
        print(f"{name:32} {rate:9.0f} {median:6.1f} ms {p99:6.1f} ms   {share:6.0%}")


def report_mixture(address: str, queued_id: str, o: argparse.Namespace) -> None:
    """What one client who looks at a job notices of many who ask for something else."""
    routes = requests_of(queued_id)
    times: dict[str, list[float]] = {"GET /empty": [], "POST /calibrate": []}
    for _ in range(o.rounds):
        for name, taken in times.items():
            one = beside(address, routes["GET /jobs/{id}"], routes[name], o.connections)
            taken.extend(one)
    print(f"\nGET /jobs/{{id}} on one connection, beside {o.connections} that ask for")
    for name, taken in times.items():
        rate, p99 = len(taken) / o.rounds, sorted(taken)[int(0.99 * (len(taken) - 1))]
        median = statistics.median(taken)
        print(f"{name:32} {rate:9.0f} {median:6.1f} ms {p99:6.1f} ms")


def beside(
    address: str, make: Callable[[], Request], others: Callable[[], Request], connections: int
) -> list[float]:
    """Milliseconds of every answer on one connection while others are busy with theirs."""
    load = threading.Thread(
        target=under_load,
        args=(address, others),
        kwargs={"connections": connections, "seconds": 1.5},
    )
    load.start()
    time.sleep(0.25)  # all of them are connected
    times = under_load(address, make, connections=1, seconds=1)
    load.join()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=10_000, help="jobs to put on record")
    parser.add_argument("--turns", type=int, default=100)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=6, help="seconds of load on each route")
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running_valkey() as redis_url:
        data_dir, redis = Path(folder), Redis.from_url(redis_url)
        make_model(data_dir / "models" / "tiny")
        with running_server(redis_url, data_dir) as client:
            address = f"{client.base_url.host}:{client.base_url.port}"
            queued_id = report_sizes(address, client, redis, o)
            finished_id = succeeded_job(client, redis_url, data_dir, 32)
            report_load(address, queued_id, finished_id, o)
            report_mixture(address, queued_id, o)


if __name__ == "__main__":
    main()
