"""Workers in the registry, as their processes would enter themselves."""

from fimlora_contract.store import JobStore
from fimlora_contract.workers import Hardware, WorkerRegistry
from fimlora_worker.presence import Presence

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
