"""Every error the worker raises on purpose, besides the engine's.

Each carries the wire's code. Those that end an attempt without being errors of the job
derive from ``BaseException``: no ``except Exception`` of a library can swallow them.
"""

from typing import ClassVar


class WorkerError(Exception):
    """Base of the worker's errors; the message is what the user reads."""

    code: ClassVar[str] = "internal"


class ModelMissing(WorkerError, LookupError):
    """The base model is not there, or is not what the job was accepted with."""

    code = "model_not_found"


class AdapterMissing(WorkerError, LookupError):
    """The trained adapter is not there, or is not what the job was accepted with."""

    code = "adapter_not_found"


class UnsupportedArchitecture(WorkerError, ValueError):
    """The model cannot be loaded with the head that the task needs."""

    code = "unsupported_architecture"


class UnsafeWeights(WorkerError, ValueError):
    """The model has no safetensors weights."""

    code = "unsafe_weights"


class DatasetSchema(WorkerError, ValueError):
    """Rows cannot be used; the message names the row and the column."""

    code = "dataset_schema"


class DatasetEmpty(WorkerError, ValueError):
    """There is nothing to calibrate on."""

    code = "dataset_empty"


class DatasetUnreachable(WorkerError, LookupError):
    """The dataset is not there, or is not what the job was accepted with."""

    code = "dataset_unreachable"


class PlanGone(WorkerError, LookupError):
    """A plan that the job was accepted with is not stored any more."""

    code = "result_expired"


class UnequalArms(WorkerError, ValueError):
    """The plans that an evaluation is to compare do not spend the same."""

    code = "validation_failed"


class JobRefused(WorkerError):
    """Storage that works refuses what this job asks of it."""

    code = "storage_unavailable"


class Abort(BaseException):
    """Base of what ends an attempt from outside, between two batches."""


class CancelRequested(Abort):
    """Somebody asked for the job to be canceled."""


class ShutdownRequested(Abort):
    """The worker is going down; another one takes the job."""


class MakesRoom(Abort):
    """The attempt lets others go first; the job goes on behind them, and nothing is lost."""


class DeadlinePassed(Abort):
    """The job has used up its time."""
