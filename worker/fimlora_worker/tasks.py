"""The names of the tasks on the queue, which stay: two versions may share one queue."""

from fimlora_worker.job.hands import lend_hand
from fimlora_worker.job.tasks import run_attempt as run_calibration

__all__ = ["lend_hand", "run_calibration"]
