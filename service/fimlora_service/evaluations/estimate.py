"""What POST /evaluations would do with a request, without doing it."""

from fimlora_contract.estimates import EvaluationEstimate
from fimlora_contract.evaluations import EvaluationRequest
from fimlora_jobs.step_times import step_seconds
from fimlora_service.calibrations.estimate import estimate_of
from fimlora_service.calibrations.submission import Submission
from fimlora_service.evaluations.resolving import EvaluationResolver


def make_estimate(
    request: EvaluationRequest, submission: Submission, resolver: EvaluationResolver
) -> EvaluationEstimate:
    """Resolve a request and sum up what is known.

    Raises:
        ServiceError: POST /evaluations would refuse it, too.
    """
    submission.check_webhook(request)
    resolved = resolver.resolve(request)
    measuring = estimate_of(request, resolved, submission)
    n_steps = request.schedule.n_steps
    step_s = step_seconds(submission.store, request, model_digest=resolved.model.digest)
    return EvaluationEstimate(
        **dict(measuring),
        n_arms=len(request.arms),
        n_runs=request.n_runs,
        most_runs=request.most_runs,
        n_steps=n_steps,
        train_s=None if step_s is None else step_s * n_steps * request.n_runs,
    )
