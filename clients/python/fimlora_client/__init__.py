"""The Python client of fimlora and the `fimlora` command."""

from fimlora_client.aio.client import AsyncClient
from fimlora_client.aio.evaluations import AsyncEvaluationHandle
from fimlora_client.aio.handle import AsyncJobHandle
from fimlora_client.blocking.client import Client
from fimlora_client.blocking.evaluations import EvaluationHandle
from fimlora_client.blocking.handle import JobHandle
from fimlora_client.errors import (
    ApiError,
    ClientError,
    ConnectionFailed,
    DigestMismatch,
    JobCanceled,
    JobFailed,
    MissingExtra,
    WaitTimeout,
)
from fimlora_client.patterns import FetchedPattern
from fimlora_client.results import Result
from fimlora_client.retries import RetryPolicy
from fimlora_contract.evaluations import EvaluationRequest
from fimlora_contract.requests import CalibrationRequest

__all__ = [
    "ApiError",
    "AsyncClient",
    "AsyncEvaluationHandle",
    "AsyncJobHandle",
    "CalibrationRequest",
    "Client",
    "ClientError",
    "ConnectionFailed",
    "DigestMismatch",
    "EvaluationHandle",
    "EvaluationRequest",
    "FetchedPattern",
    "JobCanceled",
    "JobFailed",
    "JobHandle",
    "MissingExtra",
    "Result",
    "RetryPolicy",
    "WaitTimeout",
]
