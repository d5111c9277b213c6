"""Run many small jobs through one worker, and see that nothing grows.

python tests/soak/run.py              # 1,000 jobs, a look after every 50
python tests/soak/run.py --jobs 300

A real stack: ``fimlora up`` with its store, the API and one warm worker, which is not replaced
meanwhile. Each job measures anew and is deleted once it has ended. The exit code tells whether
anything grew further than `support.soak.ALLOWED` after the first fifth.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / place) for place in ("tests", "clients/python", "service", "worker")]

from redis import Redis  # noqa: E402

from fimlora_client import Client  # noqa: E402
from fimlora_client.stack.ownership import Running, find_running  # noqa: E402
from support.jobs import LABELLED  # noqa: E402
from support.model_folders import make_encoder  # noqa: E402
from support.soak import (  # noqa: E402
    growth_beyond,
    processes_of,
    small_requests,
    soak,
    table_head,
    table_row,
)
from support.workers import PYTHONPATH  # noqa: E402

START_S = 180


def main() -> int:
    """Soak, print the table, and tell by the exit code whether something grew."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--every", type=int, default=50)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        data_dir = Path(name) / "data"
        make_encoder(data_dir / "models" / "tiny")
        process = start(data_dir)
        try:
            running = wait_until_up(process, data_dir)
            grown = run(running, data_dir, n_jobs=given.jobs, every=given.every)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
    for line in grown:
        tell(f"GREW: {line}")
    return len(grown) > 0


def run(running: Running, data_dir: Path, *, n_jobs: int, every: int) -> list[str]:
    """The table, line by line; answers what grew."""
    began, looks = time.monotonic(), []
    with Client(running.url) as client, Redis.from_url(running.redis_url) as redis:
        dataset = client.datasets.upload(LABELLED).id
        tell(table_head())
        options = {"n_jobs": n_jobs, "every": every, "requests": small_requests(dataset)}
        for found in soak(client, redis, data_dir, processes_of(running.pid), **options):
            looks.append(found)
            tell(table_row(found))
    seconds = time.monotonic() - began
    tell(f"{n_jobs:,} jobs in {seconds:.0f} s, {seconds / n_jobs:.2f} s each")
    return growth_beyond(looks, warm_up=n_jobs // 5)


def start(data_dir: Path) -> "subprocess.Popen[bytes]":
    """A stack of its own, with no setting but that its child is never replaced."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FIMLORA_", "REDIS_URL"))}
    env = kept | {"PYTHONPATH": PYTHONPATH, "FIMLORA_RECYCLE_AFTER_JOBS": "1000000"}
    command = [sys.executable, "-m", "fimlora_client.cli", "up", "--port", "0"]
    return subprocess.Popen(
        [*command, "--data-dir", str(data_dir)],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def wait_until_up(process: "subprocess.Popen[bytes]", data_dir: Path) -> Running:
    """Wait until jobs can be sent."""
    deadline = time.monotonic() + START_S
    while not (running := find_running(data_dir)):
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit("the stack does not come up; run  fimlora up  to see why")
        time.sleep(0.1)
    return running


def tell(line: str) -> None:
    """Say what is going on, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
