"""What parts of a request go with each other: refused before anything is measured."""

from collections.abc import Collection

from fimlora_contract.adapter_options import AdapterOptions
from fimlora_contract.allocations import Allocation
from fimlora_contract.budgets import Budget
from fimlora_contract.calibrations import Calibration
from fimlora_contract.methods import (
    BY_EACH_EXPERT,
    BY_LAYERS,
    BY_RETAIN,
    FEWEST_EXAMPLES,
    WITHOUT_FISHER,
)
from fimlora_contract.references import DatasetReference

NOT_IN_SHARDS = ("eva",)  # method and init: each batch updates what those before it came to
NOT_ADDED_UP = (
    "eva",
    "lora-ga",
    "lora-one",
)  # what these are made of does not add up over rounds


def check_layers(allocation: Allocation, methods: Collection[str]) -> None:
    """Refuse a number of layers where no method chooses any."""
    if allocation.n_layers is not None and not set(BY_LAYERS) & set(methods):
        raise ValueError(
            f"n_layers={allocation.n_layers} with method {', '.join(methods)}: only method "
            f"{' or '.join(BY_LAYERS)} chooses layers"
        )


def check_experts(
    allocation: Allocation,
    budget: Budget,
    methods: Collection[str],
    *,
    has_fused: bool,
    n_batches: int | str = 1,
) -> None:
    """Refuse a selection of experts that goes with something else not.

    Args:
        allocation: What may select experts.
        budget: What may be spent.
        methods: What is measured for.
        has_fused: Whether fused experts are targets, which `target_parameters` alone says; experts
            that are modules of their own are targets or not, as other modules are.
        n_batches: How many batches are measured.

    Raises:
        ValueError: Says what does not go together, and the next step.
    """
    if allocation.experts is None:
        return
    if n_batches == "auto":
        raise ValueError(
            "allocation.experts with n_batches=auto: how sure a plan is is not known where experts "
            "are selected; give a number of batches"
        )
    if has_fused:
        _check_fused(budget, methods)
        return
    experts = allocation.experts
    if experts.select == "routed" or (experts.select == "random" and experts.coverage):
        raise ValueError(
            f"allocation.experts.select={experts.select} without target_parameters: tokens are "
            "counted of fused experts alone; give target_parameters=all where the experts are "
            "fused, else select by fisher, or at random with a share"
        )
    measured = [name for name in methods if name not in {"uniform", "random"}] or methods
    if experts.select == "fisher" and not set(measured) - set(WITHOUT_FISHER):
        raise ValueError(
            f"allocation.experts.select=fisher with method {', '.join(methods)}: no Fisher "
            "information is measured for it; select at random with a share, or take method fim"
        )


def _check_fused(budget: Budget, methods: Collection[str]) -> None:
    """Refuse what is known of all experts of a fused parameter together alone."""
    if budget.bytes is not None:
        raise ValueError(
            "allocation.experts with a budget in bytes: files hold zeros for the experts that are "
            "not selected; give the budget in parameters, which are those that train"
        )
    if others := [name for name in methods if name not in BY_EACH_EXPERT]:
        raise ValueError(
            f"allocation.experts with method {others[0]}: it goes by what is recorded of all "
            f"experts together; take one of {', '.join(BY_EACH_EXPERT)}"
        )


def check_written(allocation: Allocation, adapter: AdapterOptions, *, has_fused: bool) -> None:
    """Refuse to select fused experts without the weights that alone say which ones train.

    Raises:
        ValueError: They are not written, or are other than LoRA's own.
    """
    if allocation.experts is None or not has_fused:
        return
    if not adapter.weights:
        raise ValueError(
            "allocation.experts with adapter.weights=false: initial weights alone say which of "
            "fused experts train, and from adapter_config.json all would; give adapter.weights=true"
        )
    if adapter.initial != "kaiming":
        raise ValueError(
            f"allocation.experts with adapter.init={adapter.init}: kaiming alone is "
            "written for some of fused experts; take that, or leave one of both out"
        )


def check_all_experts(allocation: Allocation) -> Allocation:
    """Refuse a selection of experts to a sweep."""
    if allocation.experts is not None:
        raise ValueError(
            "allocation.experts has no meaning here: how plans change with fewer batches is known "
            "of all experts of a projection together; plan for some with POST /jobs/{id}/allocate, "
            "or hold them against random ones with POST /jobs/{id}/compare"
        )
    return allocation


def check_trained_experts(
    allocation: Allocation, methods: Collection[str], *, has_plans: bool
) -> None:
    """Refuse an evaluation of selected experts that would show nothing of them.

    Raises:
        ValueError: They are random themselves, no method selects any, or plans are given.
    """
    if allocation.experts is None:
        return
    if allocation.experts.select == "random":
        raise ValueError(
            "allocation.experts.select=random: as many random experts are trained beside whatever "
            "is selected; give routed or fisher"
        )
    if has_plans:
        raise ValueError(
            "allocation.experts with plans: arms for selected experts are planned by methods, so "
            "that random experts can be planned alike; give methods, and leave plans out"
        )
    if not set(methods) - {"uniform", "random"}:
        raise ValueError(
            f"allocation.experts with methods {', '.join(methods)}: uniform trains all experts "
            "here, and random is its control; give a method that is neither, such as fim"
        )


def check_mean_rank(budget: Budget, allocation: Allocation) -> None:
    """Refuse a mean rank that no ranks within the bounds can have."""
    mean, low = budget.rank, allocation.r_min or 1
    high = min(filter(None, (allocation.r_max, allocation.max_lora_rank)), default=None)
    if allocation.method in BY_LAYERS:  # modules of these have more than the mean
        low = 1
    if allocation.per_type:  # whose own bounds may make up for those
        return
    if mean is not None and not low <= mean <= (high or mean):
        raise ValueError(
            f"a mean rank of {mean} is outside the feasible interval: "
            f"at least r_min={low}" + (f", at most r_max={high}" if high else "")
        )


def check_rounds(
    calibration: Calibration, allocation: Allocation, methods: tuple[str, ...]
) -> None:
    """Refuse to measure until a plan is stable where nothing tells whether it is."""
    if calibration.n_batches != "auto":
        return
    given, then = "n_batches=auto", "give a number of batches"
    if others := [name for name in methods if name not in {"fim", "uniform", "random"}]:
        raise ValueError(
            f"{given} with method {others[0]}: only a plan of fim tells when to stop, and what "
            f"others need of the mean gradient does not add up over rounds; {then}, or take fim"
        )
    if "fim" not in methods:
        raise ValueError(f"{given} with method {allocation.method}: no row moves it; {then}")
    if allocation.aggregation != "mean":
        raise ValueError(
            f"{given} with aggregation {allocation.aggregation}: its scores are no means of a "
            f"value per example; {then}, or take aggregation mean"
        )
    if calibration.estimator == "sampled":
        raise ValueError(
            f"{given} with estimator sampled: it keeps no value per example; {then}, or take "
            "estimator exact"
        )


def why_not_in_shards(
    calibration: Calibration,
    methods: Collection[str],
    *,
    init: str | None = None,
    has_retain: bool = False,
) -> str | None:
    """Say why the batches of a request cannot be measured apart from each other.

    Args:
        calibration: How it is measured.
        methods: What is measured for.
        init: The initial weights.
        has_retain: Whether another dataset is measured, too.

    Returns:
        A sentence without a stop; ``None`` where they can.
    """
    if calibration.n_batches == "auto":
        return "n_batches=auto measures in rounds, each of which follows from those before it"
    if calibration.adapter is not None:
        return "the batches of a trained adapter are measured by one worker"
    if has_retain:
        return "the rows to retain are measured by whoever has measured the dataset"
    if taken := next((name for name in NOT_IN_SHARDS if name in {*methods, init}), None):
        return f"{taken} updates the directions of inputs batch after batch"
    return None


def check_shards(
    calibration: Calibration,
    methods: Collection[str],
    *,
    init: str | None = None,
    has_retain: bool = False,
) -> None:
    """Refuse a number of shards where batches cannot be measured apart, or there are fewer."""
    if calibration.shards == "auto" or calibration.shards == 1:  # noqa: PLR1714 - types
        return
    why = why_not_in_shards(calibration, methods, init=init, has_retain=has_retain)
    given = f"calibration.shards={calibration.shards}"
    if why is not None:
        raise ValueError(f"{given}: {why}; leave shards out, or give auto")
    if calibration.shards > calibration.most_batches:
        raise ValueError(
            f"{given}: there are {calibration.most_batches} batches, and each shard holds one at "
            "least; give fewer shards, or more n_batches"
        )


def check_examples(calibration: Calibration, methods: tuple[str, ...]) -> None:
    """Refuse a method that compares more examples than are measured."""
    n_examples = calibration.most_examples
    for name in methods:
        if n_examples < (fewest := FEWEST_EXAMPLES.get(name, 0)):
            raise ValueError(
                f"method {name} compares at least {fewest} examples, and at most {n_examples} "
                f"would be measured, n_batches={calibration.most_batches} of batch_size="
                f"{calibration.batch_size}: give more, or take another method"
            )


def check_retain(retain: DatasetReference | None, methods: tuple[str, ...]) -> None:
    """Refuse a method that lacks its second dataset, and one that nothing would read."""
    needing = [name for name in methods if name in BY_RETAIN]
    if needing and retain is None:
        raise ValueError(
            f"method {needing[0]} holds the dataset against another, whose function is to be kept: "
            "give it as retain, or take another method"
        )
    if retain is not None and not needing:
        raise ValueError(
            f"retain is read by method {' or '.join(BY_RETAIN)} alone: ask for that, or leave "
            "retain out"
        )
