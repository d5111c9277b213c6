"""RQ workers whose parent holds our lease, and whose child stays warm.

Only how a work horse is started, waited for and killed is replaced; RQ's monitoring, stop
command and failure handling stay as they are. Nothing here may import torch: a parent that
had touched the device could not protect it.
"""

import logging
import random
import signal
from types import FrameType
from typing import Any

from redis import Redis
from rq import Queue, SpawnWorker, Worker
from rq.executions import Execution
from rq.job import Job
from rq.timeouts import JobTimeoutException, UnixSignalDeathPenalty
from rq.worker_registration import register

from fimlora_jobs.connection import Patience, make_patient
from fimlora_jobs.logs import log_context
from fimlora_jobs.queue import SERIALIZER
from fimlora_worker.errors import DeadlinePassed
from fimlora_worker.job.storage import until_allowed
from fimlora_worker.logs import capture_prints, configure_logging, rq_fields
from fimlora_worker.process.horse import Horse
from fimlora_worker.process.leases import Leases, ReaperThread
from fimlora_worker.process.messages import Order
from fimlora_worker.process.parent_death import die_with_parent
from fimlora_worker.process.presence import Presence
from fimlora_worker.settings import Settings

log = logging.getLogger(__name__)
HEARTBEAT_TTL_S = 20  # RQ's own is a minute more than the interval: too late for us
WORKER_TTL_S = 30
MAINTENANCE_EVERY_S = 15
# A warm child that waits for orders takes one in no time, also on a busy machine.
TAKEN_WITHIN_S = 30


class TimeLimit(UnixSignalDeathPenalty):
    """RQ's limit of a job's time, which no ``except Exception`` of a library can swallow."""

    def handle_death_penalty(self, signum: int, frame: FrameType | None) -> None:
        """End the job; RQ's other timeouts stay as they are."""
        if issubclass(self._exception, JobTimeoutException):
            raise DeadlinePassed(f"the job ran for more than {self._timeout:g} s")
        super().handle_death_penalty(signum, frame)  # type: ignore[no-untyped-call]


class LeasedWorker(Worker):
    """A worker that holds the lease of the attempt it runs and reaps those of others.

    The child rebuilds its worker without settings and leases. Nothing here gives up on a store
    that is away: its clients wait, until the worker is to leave and has nothing to finish.
    """

    death_penalty_class = TimeLimit

    def __init__(
        self,
        *args: Any,
        settings: Settings | None = None,
        leases: Leases | None = None,
        reaper: ReaperThread | None = None,
        presence: Presence | None = None,
        patience: Patience | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.settings = settings
        self._patience = patience or Patience()
        self._leases = leases
        self._reaper = reaper
        self._presence = presence

    def bootstrap(self, *args: Any, **options: Any) -> None:
        """Register with RQ, then begin to look for orphans."""
        super().bootstrap(*args, **options)
        log.info("worker.ready", extra={"worker": self.name})
        if self._presence:
            self._presence.refresh()
        if self._reaper:
            self._reaper.start()

    def teardown(self) -> None:
        """Leave; whatever fails, the reaper ends."""
        self._patience.end()
        try:
            super().teardown()  # type: ignore[no-untyped-call]
        finally:
            if self._reaper:
                self._reaper.stop()
            if self._presence:
                self._presence.leave()

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:  # noqa: ARG002
        """Seconds after which RQ may take the job's worker for dead."""
        return HEARTBEAT_TTL_S

    def monitor_work_horse(self, job: Job, queue: Queue, execution: Execution) -> None:
        """Watch over a job until its end is on record."""
        assert self._leases
        self._leases.begin(job.id)
        if self._presence:
            self._presence.begin(job.id)
        super().monitor_work_horse(job, queue, execution)
        if self._stop_requested:
            self._patience.end()
        self._leases.settle(job.id)
        if self._presence:
            self._presence.end()

    def maintain_heartbeats(self, job: Job, execution: Execution) -> None:
        """Renew RQ's heartbeat and our lease; end a job that outstays its welcome."""
        super().maintain_heartbeats(job, execution)
        assert self._leases
        if self._leases.hold(job.id) or self.is_stalled():
            log.warning("attempt.overdue", extra=rq_fields(job.id))
            self.kill_horse()

    def handle_warm_shutdown_request(self) -> None:
        """Remember that what is lost from now on is the stop's doing, inside a signal handler."""
        if self._leases:
            self._leases.stop()

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Do a job; first register again, if the registration ran out while the store was away."""
        if not self.connection.hexists(self.key, "queues"):
            log.warning("worker.registered_again", extra={"worker": self.name})
            self.connection.hset(self.key, mapping=self.serialize())
            register(self)
            self.heartbeat()
        super().execute_job(job, queue)

    def set_shutdown_requested_date(self) -> None:
        """Tell nobody: this runs inside a signal handler, and the store may be away."""

    def _shutdown(self) -> None:
        if not self.horse_pid:  # RQ's state is busy for a moment longer than the child is
            self._patience.end()
        super()._shutdown()  # type: ignore[no-untyped-call]

    def kill_horse(self, sig: signal.Signals = signal.SIGKILL) -> None:
        """Kill the child, and remember that nobody else did."""
        assert self._leases
        self._leases.note_kill()
        self.end_horse(sig)

    def end_horse(self, sig: signal.Signals) -> None:
        """Kill the child if it is working."""
        super().kill_horse(sig)

    def become_horse(self) -> None:
        """Act as the child: RQ leaves a child's registration alone."""
        self._is_horse = True

    def is_stalled(self) -> bool:
        """Whether the job has shown no sign of life for too long."""
        return False

    def handle_work_horse_killed(
        self, job: Job, retpid: int | None, ret_val: int | None, rusage: Any
    ) -> None:
        """Queue the next attempt."""
        super().handle_work_horse_killed(job, retpid, ret_val, rusage)  # type: ignore[no-untyped-call]
        assert self._leases
        self._leases.lost(job.id, ret_val)

    def _handle_stopped_job(self, job: Job, queue: Queue, execution: Execution) -> None:
        super()._handle_stopped_job(job, queue, execution)
        assert self._leases
        self._leases.stopped(job.id)


class IsolatedWorker(LeasedWorker, SpawnWorker):
    """A new interpreter for every job: slow, and nothing of one job is left for the next."""

    def main_work_horse(self, job: Job, queue: Queue) -> None:
        """Run in the child: die with the parent, then do the job."""
        die_with_parent(int(self.pid or 0))
        settings = Settings()
        configure_logging(settings, process="child")
        capture_prints()
        until_allowed(settings.leave_working_folder)
        make_patient(self.connection)  # RQ hands its child the server's address, and no more
        with log_context(**rq_fields(job.id)):
            super().main_work_horse(job, queue)


class WarmWorker(LeasedWorker):
    """A worker with one long-lived child; see `fimlora_worker.process.child`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._horse: Horse | None = None

    def bootstrap(self, *args: Any, **options: Any) -> None:
        """Start the child before the first job, so that its imports are done by then."""
        super().bootstrap(*args, **options)
        self._usable_horse()

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Do a job, then replace a child that asked for it before the next job is popped."""
        super().execute_job(job, queue)
        if not self._stop_requested:
            self._usable_horse()

    def fork_work_horse(self, job: Job, queue: Queue) -> None:
        """Give the job to the child; a child that has gone is replaced once."""
        assert self.execution
        order = Order(self.key, job.id, queue.name, self.execution.id)
        try:
            self._give(order)
        except BrokenPipeError:
            self._give(order)

    def wait_for_horse(self) -> tuple[int | None, int | None, Any]:
        """Wait until the child has answered or died."""
        assert self._horse
        return self._horse.pid, self._horse.wait(), None

    def end_horse(self, sig: signal.Signals) -> None:
        """Kill the child if it is working; a stop that comes late kills nobody."""
        if self._horse and self.horse_pid and self._horse.kill(sig):
            log.warning("horse.killed", extra={"child_pid": self._horse.pid})

    def is_stalled(self) -> bool:
        """Whether the child has sent no sign of life for too long; it may have hung while idle."""
        assert self._horse
        assert self.settings
        stall_s = self.settings.stall_s
        allowed_s = min(TAKEN_WITHIN_S, stall_s) if self._horse.is_deaf else stall_s
        return self._horse.silent_for_s() > allowed_s

    def handle_warm_shutdown_request(self) -> None:
        """Ask the child to hand its job over; runs inside a signal handler."""
        super().handle_warm_shutdown_request()
        if self._horse:
            self._horse.drain()

    def teardown(self) -> None:
        """Leave, then end the child."""
        try:
            super().teardown()
        finally:
            if self._horse:
                self._horse.close()

    def _give(self, order: Order) -> None:
        horse = self._usable_horse()
        self._horse_pid = horse.pid  # before the order: a stop may come right behind it
        horse.give(order)

    def _usable_horse(self) -> Horse:
        if self._horse is None or not self._horse.is_usable:
            if self._horse:
                self._horse.close()
            assert self.settings
            self._horse = Horse(self.settings.child_environment())
        return self._horse


def run_order(order: Order, redis: Redis) -> None:
    """Do a job in the child as RQ's own work horse would.

    What RQ has on record of worker and execution runs out while the store is away, so neither is
    looked up: the order says who they are.
    """
    job = Job.fetch(order.job_id, connection=redis, serializer=SERIALIZER)
    queue = Queue(order.queue, connection=redis, serializer=SERIALIZER)
    worker = WarmWorker(
        [queue],
        name=order.worker_key.removeprefix(WarmWorker.redis_worker_namespace_prefix),
        connection=redis,
        serializer=SERIALIZER,
        worker_ttl=WORKER_TTL_S,
        prepare_for_work=False,
    )
    worker.become_horse()
    execution = Execution(
        order.execution_id, order.job_id, connection=redis, worker_name=worker.name
    )
    execution._job = job  # noqa: SLF001 - its own property would unpickle
    worker.executions[execution.id] = execution
    signal.alarm(0)
    random.seed(0)
    with log_context(**rq_fields(job.id)):
        worker.perform_job(job, queue, execution)
