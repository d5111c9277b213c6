"""How many tokens one request may send through a model: the operator's bound on what a job takes.

Counted as asked for, whatever rows there are: what is refused does not hang on a dataset.
"""

import math
from collections.abc import Iterator, Mapping

from fimlora_contract.evaluations import EvaluationRequest
from fimlora_contract.requests import CalibrationRequest
from fimlora_service.errors import ValidationFailed


def check_tokens(request: CalibrationRequest, *, most: int) -> None:
    """Refuse a request for more tokens than the operator allows.

    Args:
        request: A calibration, a comparison or an evaluation.
        most: Tokens that each part of it may take; 0 for no limit.

    Raises:
        ValidationFailed: Names the settings, what they come to and what is allowed.
    """
    for place, factors in _parts(request) if most else ():
        tokens = math.prod(factors.values())
        if tokens > most:
            given = " x ".join(f"{name}={value}" for name, value in factors.items())
            message = (
                f"{given} are {tokens:,} tokens; this service takes at most {most:,}: make one of "
                "them smaller, or ask the operator to raise FIMLORA_MAX_CALIBRATION_TOKENS"
            )
            raise ValidationFailed(
                message,
                errors=[{"field": place, "message": message, "type": "too_many_tokens"}],
            )


def _parts(request: CalibrationRequest) -> Iterator[tuple[str, Mapping[str, int]]]:
    """Where a request says how much it takes, and what is multiplied there."""
    asked = request.calibration
    batches = "max_batches" if asked.n_batches == "auto" else "n_batches"
    length = {"max_length": asked.max_length}
    yield (
        "calibration",
        {batches: asked.most_batches, "batch_size": asked.batch_size} | length,
    )
    if "head_rows" in asked.model_fields_set:  # by default most models fit no head
        yield "calibration.head_rows", {"head_rows": asked.head_rows} | length
    if isinstance(request, EvaluationRequest):
        schedule, length = request.schedule, {"max_length": request.max_length}
        yield "steps", {"steps": schedule.n_steps, "batch_size": request.batch_size} | length
        yield "eval_rows", {"eval_rows": schedule.n_eval_rows} | length
