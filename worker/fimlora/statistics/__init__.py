"""What one calibration run leaves; nothing here imports torch."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fimlora.statistics.statistics import Statistics

__all__ = ["Statistics"]


def __getattr__(name: str) -> Any:
    if name != "Statistics":
        raise AttributeError(f"module 'fimlora.statistics' has no attribute {name!r}")
    # Who only names a run's options is spared numpy: the service starts without it.
    from fimlora.statistics.statistics import Statistics

    return Statistics
