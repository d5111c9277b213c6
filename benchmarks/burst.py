"""GET /jobs/{id} beside hundreds of simultaneous submissions.

All submissions are sent at once, each on a connection of its own, by another process; meanwhile
fifty clients look at a job once a second, so that a silence of the server counts for as long as it
is. The same polls on the idle server come first.

    python benchmarks/burst.py
"""

import argparse
import http.client
import json
import multiprocessing
import selectors
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path

sys.path.extend(
    str(Path(__file__).parents[1] / place)
    for place in ("clients/python", "service", "worker", "tests")
)
from server import ROWS, running_server
from support.service import make_model
from support.valkey import running_valkey

BODY = {"base_model": "tiny", "dataset": {"source": "inline", "rows": ROWS}, "budget": 8}
N_CLIENTS = 50
EVERY_S = 1.0


def submission(seed: int, address: tuple[str, int], n_rows: int) -> bytes:
    """A request that equals no other."""
    rows = [{"text": f"text {n}", "label": n % 2} for n in range(n_rows)]
    dataset = {"source": "inline", "rows": rows}
    body = json.dumps(BODY | {"dataset": dataset, "calibration": {"seed": seed}}).encode()
    lines = [
        "POST /calibrate HTTP/1.1", f"Host: localhost:{address[1]}", f"Content-Length: {len(body)}",
        "Content-Type: application/json", f"Idempotency-Key: {seed}", "Connection: close", "", "",
    ]  # fmt: skip
    return "\r\n".join(lines).encode() + body


def submit_all(address: tuple[str, int], n: int, n_rows: int, ready: Event, go: Event) -> None:
    """Connect as often as there are submissions, then send all of them and read the answers."""
    requests = [submission(seed, address, n_rows) for seed in range(n)]
    connections = [socket.create_connection(address) for _ in range(n)]
    ready.set()
    go.wait()
    began, accepted = time.monotonic(), 0
    with selectors.DefaultSelector() as selector:
        for connection, request in zip(connections, requests, strict=True):
            connection.sendall(request)
            selector.register(connection, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                received = key.fileobj.recv(65_536)  # type: ignore[union-attr]
                accepted += received.startswith(b"HTTP/1.1 202")
                if not received:
                    selector.unregister(key.fileobj)
    seconds = time.monotonic() - began
    print(f"{accepted} of {n} submissions accepted, the last after {seconds:.1f} s")


def poll(address: tuple[str, int], job_id: str, until: Callable[[], bool]) -> list[float]:
    """Milliseconds of each answer to many clients, each of which asks once a second."""
    times: list[float] = []

    def keep_asking(nth: int) -> None:
        time.sleep(EVERY_S * nth / N_CLIENTS)
        connection = http.client.HTTPConnection(*address)
        while not until():
            began = time.perf_counter()
            connection.request("GET", f"/jobs/{job_id}")
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200, answer.status
            seconds = time.perf_counter() - began
            times.append(1000 * seconds)
            time.sleep(max(EVERY_S - seconds, 0))

    threads = [threading.Thread(target=keep_asking, args=(n,)) for n in range(N_CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


def report(name: str, times: list[float]) -> None:
    ordered = sorted(times)
    median, p95 = statistics.median(ordered), ordered[int(0.95 * (len(ordered) - 1))]
    print(
        f"{name:24} {len(ordered):6} polls, median {median:8.1f} ms, p95 {p95:8.1f} ms, "
        f"longest {ordered[-1]:8.1f} ms"
    )


def beside(address: tuple[str, int], job_id: str, o: argparse.Namespace) -> list[float]:
    """Polls from the moment of the burst to the last answer to it."""
    spawn = multiprocessing.get_context("spawn")
    ready, go = spawn.Event(), spawn.Event()
    burst = spawn.Process(target=submit_all, args=(address, o.submissions, o.rows, ready, go))
    burst.start()
    ready.wait()
    go.set()
    times = poll(address, job_id, lambda: not burst.is_alive())
    burst.join()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--submissions", type=int, default=550)
    parser.add_argument("--rows", type=int, default=8, help="inline rows of each")
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running_valkey() as redis_url:
        data_dir = Path(folder)
        make_model(data_dir / "models" / "tiny")
        with running_server(redis_url, data_dir) as client:
            address = (str(client.base_url.host), int(client.base_url.port or 80))
            job_id = client.post("/calibrate", json=BODY).raise_for_status().json()["id"]
            end = time.monotonic() + 3
            report("nothing else", poll(address, job_id, lambda: time.monotonic() > end))
            report(f"{o.submissions} submissions", beside(address, job_id, o))


if __name__ == "__main__":
    main()
