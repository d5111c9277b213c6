"""Sweep over settings by what a job has measured: the engine's arithmetic, no device and no queue.

It brings numpy along, so it is imported when the first sweep is asked for.
"""

from pathlib import Path

from fimlora import Budget, FimloraError, InfeasibleBudget, Statistics
from fimlora.confidence.sweep import sweep
from fimlora.errors import InvalidStatistics
from fimlora_contract.sweeps import Sweep, SweepRequest
from fimlora_jobs.results.store import STATISTICS
from fimlora_service import errors


def sweep_again(job_id: str, request: SweepRequest, *, path: Path) -> Sweep:
    """Plans under the settings of a request.

    Args:
        job_id: The job that has measured.
        request: The settings.
        path: The file of its statistics.

    Raises:
        ServiceError: The file cannot be read, or the settings do not fit it.
    """
    budget = request.budget
    try:
        with Statistics.opened(path) as statistics:
            found = sweep(
                statistics,
                Budget(budget.unit, budget.value, budget.bytes_per_parameter),
                aggregations=request.aggregations,
                n_batches=request.n_batches,
                r_min=request.r_min,
                signal=request.signal,
                **request.allocation.model_dump(exclude={"method", "aggregation", "r_min"}),
            )
    except InvalidStatistics as error:
        raise errors.ArtifactNotFound(
            f"{STATISTICS} of job {job_id!r} cannot be read"
        ) from error
    except InfeasibleBudget as error:
        raise errors.BudgetInfeasible(str(error)) from error
    except FimloraError as error:
        raise errors.ValidationFailed(str(error)) from error
    return Sweep.model_validate(found.to_json() | {"job_id": job_id})
