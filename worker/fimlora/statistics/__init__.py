"""What one calibration run leaves; nothing here imports torch."""

from fimlora.statistics.statistics import Statistics

__all__ = ["Statistics"]
