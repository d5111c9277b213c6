"""What a calibration at a trained adapter may ask for besides.

There A and B both have a gradient, and the adapter says which modules are targets.
"""

from typing import Any

AT_A_POINT = ("fim", "uniform", "random")


def check_trained_point(request: Any) -> None:
    """Refuse what cannot be measured, or means nothing, with an adapter on the model.

    Args:
        request: A calibration that names an adapter.

    Raises:
        ValueError: The field, why not, and what to do.
    """
    calibration, allocation = request.calibration, request.allocation
    given = f"calibration.adapter={calibration.adapter}"
    others = [name for name in request.methods_measured if name not in AT_A_POINT]
    refusals = {
        "executor streamed: a checkpoint's blocks carry no adapter; take resident or auto": (
            calibration.executor == "streamed"
        ),
        "n_batches auto: no value per example tells when to stop; give a number of batches": (
            calibration.n_batches == "auto"
        ),
        "target_modules: the adapter says which modules are targets; leave it out": (
            request.target_modules is not None
        ),
        "exclude_modules: the adapter says which modules are targets; leave it out": (
            request.exclude_modules is not None
        ),
        "target_parameters: the adapter says what its targets are, and one on fused experts is not "
        "measured; leave it out": request.target_parameters is not None,
        "modules_to_save: the adapter says which modules are saved whole; leave it out": (
            request.modules_to_save is not None
        ),
        f"method {''.join(others[:1])}: only fim is scored where A and B are trained": bool(
            others
        ),
        f"aggregation {allocation.aggregation}: sums by rank are recorded, which give a mean; "
        "take mean": allocation.aggregation != "mean",
        "adapter.weights: they would be fresh ones; take those of the trained adapter, which "
        "POST /adapters/{id}/truncate cuts": request.adapter.weights,
        "retain: a second dataset is contrasted at the base model only; leave it out": (
            request.retain is not None
        ),
    }
    for refusal, is_given in refusals.items():
        if is_given:
            raise ValueError(f"{given} with {refusal}")
