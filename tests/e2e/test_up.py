"""``fimlora up`` as a user runs it: real processes, a real pretrained model, one machine."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from fimlora_client import AsyncClient, Client, ConnectionFailed
from fimlora_client.stack.ownership import Running, find_running
from support.jobs import LABELLED, write_jsonl
from support.model_folders import make_encoder, minilm_folder
from support.soak import growth_beyond, processes_of, small_requests, soak
from support.workers import PYTHONPATH, is_alive, wait_dead

ROWS = [
    {"text": f"{verb} the {noun} number {n}", "label": verb}
    for n in range(8)
    for verb, noun in (("open", "socket"), ("parse", "date"), ("sort", "list"))
]
SECRET = "whsec_c2VydmljZSdzIG93bg=="
FIELDS = {"base_model": "minilm", "budget": 8, "calibration": {"n_batches": 2, "batch_size": 4}}
LOGGED = [("service", " job.queued "), ("worker", " attempt.started ")]
pytestmark = pytest.mark.slow


def environment(**more: str) -> dict[str, str]:
    """A user's environment: nothing of ours is set, so that defaults are what is tested."""
    ours = ("FIMLORA_", "REDIS_URL", "XDG_RUNTIME_DIR")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    return kept | {"PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"} | more


def start(data_dir: Path, log: Path, *options: str, **more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "fimlora_client.cli", "up", "--port", "0", *options]
    with log.open("wb") as file:
        return subprocess.Popen(
            [*command, "--data-dir", str(data_dir)],
            env=environment(**more), stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip


def wait_until_up(process: subprocess.Popen[bytes], data_dir: Path, log: Path) -> Running:
    deadline = time.monotonic() + 120
    while not (running := find_running(data_dir)):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    return running


def descendants(pid: int) -> list[int]:
    """Every process below one."""
    task = Path(f"/proc/{pid}/task/{pid}/children")
    children = [int(child) for child in task.read_text().split()]
    return children + [below for child in children for below in descendants(child)]


def pid_of(pid: int, *words: str) -> int:
    """The one child whose command line has these words."""
    task = Path(f"/proc/{pid}/task/{pid}/children")
    lines = {int(c): Path(f"/proc/{c}/cmdline").read_text() for c in task.read_text().split()}
    (found,) = [child for child, line in lines.items() if all(word in line for word in words)]
    return found


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Path]]:
    """A running stack with MiniLM registered, shared by the tests that leave it whole."""
    folder = tmp_path_factory.mktemp("up")
    data_dir, log = folder / "data", folder / "log"
    process = start(data_dir, log, FIMLORA_WEBHOOK_SECRET=SECRET)
    try:
        running = wait_until_up(process, data_dir, log)
        added = fimlora(running, "models", "add", "minilm", minilm_folder())
        assert added.returncode == 0, added.stderr
        yield running, log
    finally:
        process.terminate()
        assert process.wait(60) == 0


def fimlora(running: Running, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """A command line against the stack."""
    return subprocess.run(
        [sys.executable, "-m", "fimlora_client.cli", *map(str, arguments)],
        env=environment(
            FIMLORA_URL=running.url, FIMLORA_DATA_DIR=running.data_dir, COLUMNS="100"
        ),
        capture_output=True,
        text=True,
        check=False,
    )


def log_line(running: Running, process: str, event: str) -> str:
    """The first line of an event in the log of a process."""
    log = Path(running.data_dir) / "logs" / f"{process}.log"
    return next(line for line in log.read_text().splitlines() if event in line)


def named(name: str, line: str) -> str:
    """The value of a field of a log line."""
    return line.partition(f' {name}="')[2].partition('"')[0]


def wait_until_reached(client: Client) -> None:
    """Wait until the API answers: a restarted one imports for some seconds."""
    deadline = time.monotonic() + 60
    while True:
        try:
            client.health()
        except ConnectionFailed:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        else:
            return


def test_a_real_model_is_calibrated_from_the_command_line_and_from_python(stack, tmp_path):
    """The second request, by another client, is answered from the cache."""
    running, _log = stack
    rows = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    options = ["--batches", 2, "--batch-size", 4, "--output", tmp_path / "adapter"]

    ran = fimlora(running, "calibrate", "minilm", rows, "--budget", 8, *options)

    assert ran.returncode == 0, ran.stderr
    assert "96 of 96 ranks = 73,728 parameters" in ran.stdout
    queued, started = (log_line(running, *what) for what in LOGGED)
    for name in ("job_id", "request_id"):  # from the request to the worker's child
        assert named(name, queued) == named(name, started) != ""
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    with Client(running.url) as client:
        dataset = client.datasets.upload(rows)
        job = client.calibrate(**FIELDS, dataset=dataset.id)
        assert job.cached
        assert job.wait().adapter_config == config


def test_the_asynchronous_client_does_the_same(stack):
    """With events as they happen, and the same result."""
    running, _log = stack

    async def calibrate() -> tuple[list[str], int, bool]:
        async with AsyncClient(running.url) as client:
            dataset = await client.datasets.upload(ROWS[:12])
            job = await client.calibrate(**FIELDS, dataset=dataset.id)
            statuses = [event.status.value async for event in job.events()]
            result = await job.wait()
            again = await client.calibrate(**FIELDS, dataset=dataset.id)
            return statuses, sum(result.rank_pattern.values()), again.cached

    statuses, ranks, cached = asyncio.run(calibrate())

    assert (statuses[0], statuses[-1]) == ("queued", "succeeded")
    assert "running" in statuses
    assert ranks == 96
    assert cached


def test_a_second_owner_of_the_data_folder_is_refused(stack):
    """It is told where the first one is."""
    running, _log = stack

    second = fimlora(running, "up", "--port", 0)

    assert second.returncode == 1
    assert f"in use by process {running.pid} at {running.url}" in second.stderr


def test_nothing_grows_with_the_jobs(stack):
    """In short what `make soak` does over a thousand: memory, handles, threads, keys, disk."""
    running, _ = stack
    data_dir = Path(running.data_dir)
    make_encoder(data_dir / "models" / "tiny")
    with Client(running.url) as client, Redis.from_url(running.redis_url) as redis:
        requests = small_requests(client.datasets.upload(LABELLED).id)
        processes = processes_of(running.pid)
        options = {"n_jobs": 12, "every": 4, "requests": requests}
        looks = list(soak(client, redis, data_dir, processes, **options))

    assert looks[-1].jobs == 12
    assert growth_beyond(looks, warm_up=4) == []


def test_each_process_is_given_its_own_secrets(stack):
    """The service's are in no worker's environment, where a model's files are read."""
    running, _ = stack
    service = pid_of(running.pid, "fimlora_service")
    below = descendants(running.pid)

    holders = [p for p in below if SECRET in Path(f"/proc/{p}/environ").read_text()]

    assert holders == [service]
    assert len(below) >= 4


def test_what_dies_is_started_again(stack):
    """The API and the worker come back by themselves, and jobs still run."""
    running, log = stack
    for words in (("fimlora_service",), ("fimlora_worker",)):
        pid = pid_of(running.pid, *words)
        os.kill(pid, signal.SIGKILL)
        wait_dead(pid)

    deadline = time.monotonic() + 60
    while log.read_text().count("restarted as process") < 2:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)

    with Client(running.url) as client:
        wait_until_reached(client)
        dataset = client.datasets.upload(ROWS[:8])
        assert client.calibrate(**FIELDS, dataset=dataset.id).wait(timeout=90).rank_pattern


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["asked", "killed"])
def test_nothing_is_left_when_it_ends(tmp_path, number):
    """Neither a process nor a socket, also when nobody had the time to clear up."""
    process = start(tmp_path / "data", tmp_path / "log")
    running = wait_until_up(process, tmp_path / "data", tmp_path / "log")
    below = descendants(running.pid)
    assert len(below) >= 4  # guardian, Valkey, API, worker, and the worker's child

    process.send_signal(number)
    status = process.wait(60)

    for pid in below:
        wait_dead(pid, timeout_s=40)
    assert status == (0 if number is signal.SIGTERM else -signal.SIGKILL)
    assert not any(is_alive(pid) for pid in below)
    if number is signal.SIGTERM:
        assert find_running(tmp_path / "data") is None
        assert not Path(running.redis_url.removeprefix("unix://")).parent.exists()


def test_a_given_server_is_used_by_as_many_workers_as_asked_for(tmp_path, valkey_url):
    """Then no server is started, and the given one goes on when the stack ends."""
    log, address = tmp_path / "log", tmp_path / "address"
    address.write_text(f"{valkey_url}\n")  # it may hold a password, so it may be a secret
    process = start(tmp_path / "data", log, "--workers", "2", REDIS_URL_FILE=str(address))
    try:
        running = wait_until_up(process, tmp_path / "data", log)
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        lines = [Path(f"/proc/{child}/cmdline").read_text() for child in children]
    finally:
        process.terminate()
        status = process.wait(60)

    assert status == 0
    assert running.redis_url == valkey_url
    assert sum("fimlora_worker" in line for line in lines) == 2
    assert not any("valkey-server" in line for line in lines)
    assert not (tmp_path / "data" / "valkey").exists()
    with Redis.from_url(valkey_url) as redis:
        assert redis.ping()


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there may be a GPU")
def test_a_gpu_that_is_asked_for_and_missing_ends_the_start(tmp_path):
    """With the worker's own sentence, not with a stack that fails every job."""
    log = tmp_path / "up.log"
    process = start(tmp_path / "data", log, FIMLORA_DEVICE="cuda")

    assert process.wait(timeout=120) != 0
    assert "torch sees no CUDA device" in log.read_text()
