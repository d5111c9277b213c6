"""What one worker process keeps from job to job.

RQ enters a task by its dotted name with JSON arguments, so a task must find connections,
caches and orders by itself: this is the one place where a process has state of its own.
"""

import functools
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from redis import Redis

from fimlora_jobs.connection import patient_redis
from fimlora_jobs.datasets.folders import FolderDigests
from fimlora_jobs.datasets.kept_digests import KeptDigests
from fimlora_jobs.queue import RqTransport
from fimlora_jobs.results.object_store import open_artifacts
from fimlora_jobs.results.store import ArtifactStore
from fimlora_jobs.results.tracked import TrackedArtifacts
from fimlora_jobs.results.usage import ResultUsage
from fimlora_jobs.store import JobStore
from fimlora_jobs.telemetry import Tracing, open_provider
from fimlora_worker.inputs.device import DeviceLock
from fimlora_worker.inputs.model_cache import ModelCache
from fimlora_worker.settings import Settings

N_READERS = 8  # tokenizers and configurations, kept by number


def _nothing() -> None:
    return None


@dataclass
class WorkerProcess:
    """State of one process that runs jobs.

    Attributes:
        models: Loaded models.
        readers: Configurations and tokenizers.
        digests: Digests of registered folders.
        artifacts: What keeps results.
        is_draining: The worker is shutting down; running jobs are handed over.
        must_retire: Something broke that only a new process repairs.
        on_alive: Tells the parent that the job is alive.
        tracing: Makes the traces of attempts.
        imports: The thread that imports torch ahead of the first job, if there is one.
    """

    settings: Settings
    redis: Redis
    store: JobStore
    transport: RqTransport
    models: ModelCache
    digests: FolderDigests
    artifacts: ArtifactStore
    readers: ModelCache = field(default_factory=lambda: ModelCache(limit_bytes=N_READERS))
    device_lock: DeviceLock = field(default_factory=DeviceLock)
    is_draining: bool = False
    must_retire: bool = False
    on_alive: Callable[[], None] = _nothing
    imports: threading.Thread | None = field(default=None, repr=False)
    tracing: Tracing = field(default_factory=Tracing)

    @classmethod
    def open(cls, settings: Settings) -> "WorkerProcess":
        """Connect, and create the folders a worker writes to."""
        settings.create_folders()
        redis = patient_redis(settings.redis_url)
        store = JobStore(redis)
        artifacts = open_artifacts(settings.artifacts_url, data_dir=settings.data_dir)
        return cls(
            settings=settings,
            redis=redis,
            store=store,
            transport=RqTransport(redis),
            models=ModelCache(limit_bytes=settings.model_cache_bytes),
            digests=FolderDigests(KeptDigests(settings.digests_dir)),
            artifacts=TrackedArtifacts(artifacts, ResultUsage(store)),
            tracing=Tracing(
                open_provider("worker") if settings.are_traces_wanted else None,
                is_flushed=settings.worker_isolation == "process",
            ),
        )

    @property
    def name(self) -> str:
        """What the job record calls this worker."""
        return f"{socket.gethostname()}-{os.getpid()}"

    def wait_for_imports(self) -> None:
        """Wait until the heavy libraries are there; two threads must not import them."""
        if self.imports:
            self.imports.join()


@functools.lru_cache(maxsize=4)
def process_for(settings: Settings) -> WorkerProcess:
    """The state of this process under these settings."""
    return WorkerProcess.open(settings)
