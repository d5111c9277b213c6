"""Compare methods by what a job has measured: the engine's arithmetic, no device and no queue.

It brings numpy along, so it is imported when the first comparison is asked for.
"""

from pathlib import Path

from fimlora import Budget, FimloraError, InfeasibleBudget, Statistics, compare
from fimlora.confidence.compare import Comparison
from fimlora.confidence.compare_picture import render_comparison
from fimlora.errors import InvalidStatistics
from fimlora_contract.comparison_requests import JobComparisonRequest
from fimlora_contract.comparisons import JobComparison
from fimlora_jobs.results.store import STATISTICS
from fimlora_service import errors


def compare_again(job_id: str, request: JobComparisonRequest, *, path: Path) -> JobComparison:
    """What POST /compare would find from these statistics.

    Args:
        job_id: The job that has measured.
        request: The settings.
        path: The file of its statistics.

    Raises:
        ServiceError: The file cannot be read, or the settings do not fit it.
    """
    found = _compare(job_id, request, path=path)
    picture = render_comparison(found) if request.picture else None
    return JobComparison.model_validate(
        found.to_json() | {"job_id": job_id, "picture": picture}
    )


def _compare(job_id: str, request: JobComparisonRequest, *, path: Path) -> Comparison:
    budget = request.budget
    try:
        with Statistics.opened(path) as statistics:
            return compare(
                statistics,
                Budget(budget.unit, budget.value, budget.bytes_per_parameter),
                methods=request.methods,
                **request.allocation.model_dump(exclude={"method"}),
            )
    except InvalidStatistics as error:
        raise errors.ArtifactNotFound(
            f"{STATISTICS} of job {job_id!r} cannot be read"
        ) from error
    except InfeasibleBudget as error:
        raise errors.BudgetInfeasible(str(error)) from error
    except FimloraError as error:
        raise errors.ValidationFailed(str(error)) from error
