"""The name of the task on the queue, which stays: two versions may share one queue."""

from fimlora_worker.job.tasks import run_calibration

__all__ = ["run_calibration"]
