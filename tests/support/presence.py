"""Workers in the registry, as their processes would enter themselves."""

from fimlora_contract.workers import Hardware
from fimlora_jobs.store import JobStore
from fimlora_jobs.workers import WorkerRegistry
from fimlora_worker.process.presence import Presence

GIB = 1 << 30
CPU = Hardware(device="cpu", memory_bytes=8 * GIB, host_memory_bytes=8 * GIB)
GPU = Hardware(
    device="cuda", device_name="Made-up 80", memory_bytes=80 * GIB, host_memory_bytes=8 * GIB
)


def enter_worker(store: JobStore, *, name: str = "w1", hardware: Hardware = CPU) -> Presence:
    """Put a living worker on record."""
    presence = Presence(WorkerRegistry(store), name=name, hardware=hardware)
    presence.refresh()
    return presence
