"""The command ``python -m fimlora_worker``: run a worker, or several."""

import argparse
import os
import signal
import socket
import sys
from collections.abc import Sequence
from types import FrameType
from uuid import uuid4

from fimlora_contract.environment import SettingsError
from fimlora_jobs.attempts import QUEUE_NAME
from fimlora_jobs.connection import Patience, patient_redis
from fimlora_jobs.queue import SERIALIZER, RqTransport
from fimlora_jobs.settings import environment_help, settings_as_json
from fimlora_jobs.store import JobStore
from fimlora_jobs.store_watch import StoreWatch
from fimlora_jobs.workers import WorkerRegistry
from fimlora_worker.job.signing import signing_key
from fimlora_worker.job.storage import until_allowed
from fimlora_worker.job.work_folders import remove_dead_folders, remove_ended_progress
from fimlora_worker.logs import configure_logging, rq_level
from fimlora_worker.process.cuda_check import why_no_cuda
from fimlora_worker.process.hardware import find_hardware
from fimlora_worker.process.leases import Leases, ReaperThread
from fimlora_worker.process.parent_death import die_with_parent
from fimlora_worker.process.presence import Presence
from fimlora_worker.process.several import Several
from fimlora_worker.process.slots import (
    DriverSilent,
    Slot,
    SlotError,
    at_slot,
    n_workers,
    read_slot,
)
from fimlora_worker.process.threads import thread_environment
from fimlora_worker.process.warm_worker import (
    MAINTENANCE_EVERY_S,
    WORKER_TTL_S,
    IsolatedWorker,
    LeasedWorker,
    WarmWorker,
)
from fimlora_worker.settings import Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Take jobs from the queue until told to stop; the exit status says whether it could."""
    given = _parser().parse_args(arguments)
    try:
        settings = Settings.read()
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return os.EX_CONFIG
    settings.forget_secrets_of_others()
    if given.settings:
        sys.stdout.write(f"{settings_as_json(settings)}\n")
        return os.EX_OK
    configure_logging(settings, process="worker")
    try:
        if given.workers is not None:
            n = n_workers(given.workers, settings)
            if not given.count:
                return _run_several(n, given)
            sys.stdout.write(f"{n}\n")
            return os.EX_OK
        if given.slot is not None:
            settings = at_slot(settings, read_slot(given.slot))
    except DriverSilent as error:  # whoever starts workers may try again
        sys.stderr.write(f"{error}\n")
        return os.EX_TEMPFAIL
    except SlotError as error:
        sys.stderr.write(f"{error}\n")
        return os.EX_CONFIG
    if given.parent is not None:
        die_with_parent(given.parent)
    if settings.device == "cuda" and (problem := why_no_cuda(settings.child_environment())):
        sys.stderr.write(f"{problem}\n")
        return os.EX_CONFIG
    try:
        signing_key(settings)
    except ValueError as error:
        sys.stderr.write(f"FIMLORA_SIGNING_KEY cannot be used: {error}\n")
        return os.EX_CONFIG
    signal.signal(signal.SIGTERM, _leave)  # RQ's own handlers come with its work
    until_allowed(settings.create_folders)
    # Not ended by it: whoever starts a server and workers together starts them in any order.
    StoreWatch(settings.redis_url).wait()
    # For the processes that load torch; this one does not.
    os.environ.update(thread_environment(settings.torch_threads, os.environ))
    worker = create_worker(settings)
    worker.work(
        burst=given.burst, max_jobs=given.max_jobs, logging_level=rq_level(settings.log_level)
    )
    return 0


def _run_several(n: int, given: argparse.Namespace) -> int:
    """Run so many workers, each with its own device, as children of this process."""
    passed_on = ["--burst"] * given.burst
    passed_on += ["--max-jobs", str(given.max_jobs)] if given.max_jobs is not None else []
    safely = ["-P"] if sys.flags.safe_path else []
    command = [sys.executable, *safely, "-m", "fimlora_worker", "--parent", str(os.getpid())]
    slots = (Slot(number, n) for number in range(1, n + 1))
    commands = [[*command, "--slot", str(slot), *passed_on] for slot in slots]
    return Several(commands, ends_by_itself=bool(passed_on)).run()


def create_worker(settings: Settings) -> LeasedWorker:
    """Build a worker that is ready to work."""
    patience = Patience()
    store, transport = _connect(settings, patience)
    reaper_store, reaper_transport = _connect(settings, patience)
    # RQ refuses a name that is still registered, so a restart needs another one.
    name = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
    hardware = find_hardware(settings.device, visible=settings.cuda_visible_devices)
    presence = Presence(WorkerRegistry(reaper_store), name=name, hardware=hardware)
    worker_class: type[LeasedWorker] = (
        IsolatedWorker if settings.worker_isolation == "process" else WarmWorker
    )
    return worker_class(
        [QUEUE_NAME],
        name=name,
        connection=patient_redis(settings.redis_url, patience=patience),
        serializer=SERIALIZER,
        worker_ttl=WORKER_TTL_S,
        maintenance_interval=MAINTENANCE_EVERY_S,
        job_monitoring_interval=settings.monitor_every_s,
        log_job_description=False,
        settings=settings,
        leases=Leases(store, transport, grace_s=settings.cancel_grace_s),
        reaper=ReaperThread(
            reaper_store,
            reaper_transport,
            also=(
                presence.refresh,
                lambda: remove_dead_folders(settings.tmp_dir, reaper_store),
                lambda: remove_ended_progress(settings.tmp_dir, reaper_store),
            ),
        ),
        presence=presence,
        patience=patience,
    )


def _connect(settings: Settings, patience: Patience) -> tuple[JobStore, RqTransport]:
    redis = patient_redis(settings.redis_url, patience=patience)
    return JobStore(redis), RqTransport(redis)


def _leave(_signum: int, _frame: FrameType | None) -> None:
    raise SystemExit(os.EX_OK)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fimlora_worker",
        description="Take calibration jobs from the queue and run them, one at a time.",
        epilog=environment_help(Settings),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--burst", action="store_true", help="quit when the queue is empty")
    parser.add_argument("--max-jobs", type=int, metavar="N", help="quit after N jobs")
    parser.add_argument(
        "--workers",
        metavar="N|auto",
        help="run so many workers, each with a GPU or a share of the cores; auto: one on every GPU",
    )
    parser.add_argument("--slot", metavar="I/N", help="be one of several workers here, as 2/4")
    parser.add_argument(
        "--count", action="store_true", help="say how many --workers would be, and quit"
    )
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    parser.add_argument(
        "--settings", action="store_true", help="show what is set, as JSON, and quit"
    )
    return parser
