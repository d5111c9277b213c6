"""The bodies of POST /compare and POST /jobs/{id}/compare."""

from typing import Annotated, Self, get_args

from pydantic import AfterValidator, Field, model_validator

from fimlora_contract.adapter_options import AdapterOptions
from fimlora_contract.allocations import Allocation
from fimlora_contract.base import RequestModel
from fimlora_contract.budgets import AnyBudget
from fimlora_contract.methods import (
    BY_EACH_EXPERT,
    BY_EXAMPLES,
    BY_RETAIN,
    FEWEST_EXAMPLES,
    ON_REQUEST,
    AskedMethod,
    MethodName,
)
from fimlora_contract.request_checks import check_layers, check_mean_rank
from fimlora_contract.requests import CalibrationRequest


def check_distinct(methods: list[MethodName] | None) -> list[MethodName] | None:
    """Refuse fewer than two methods, however often one is named."""
    if methods is not None and len(set(methods)) < max(2, len(methods)):
        raise ValueError(f"methods={methods}: at least two, each once")
    return methods


def check_no_method(allocation: Allocation) -> Allocation:
    """Refuse one method where several are compared."""
    if allocation.method != Allocation().method:
        raise ValueError(
            f"allocation.method={allocation.method!r} has no meaning here; give it in methods"
        )
    return allocation


Methods = Annotated[
    list[AskedMethod] | None,
    AfterValidator(check_distinct),
    Field(
        description="At least two; by default all that one set of passes gives, but gora and "
        "kappa, which take memory or time in proportion to the model."
    ),
]
SharedAllocation = Annotated[
    Allocation,
    AfterValidator(check_no_method),
    Field(
        description="How the budget is shared: the same for all methods. Beside selected experts, "
        "as many random ones are shown, at the same budget."
    ),
]


class ComparisonRequest(CalibrationRequest):
    """Ask for the plans of several methods side by side; nothing is trained.

    What it shares with POST /calibrate says what is measured and how plans are made.
    """

    methods: Methods = None
    allocation: SharedAllocation = Allocation()

    @model_validator(mode="after")
    def _no_adapter(self) -> Self:
        if self.adapter != AdapterOptions():
            raise ValueError("adapter has no meaning here: none is written")
        return self

    @property
    def writes_adapter(self) -> bool:
        """Whether what comes of it is an adapter's folder."""
        return False

    @property
    def methods_measured(self) -> tuple[str, ...]:
        """The methods that are compared: what they need is measured."""
        if self.methods is not None:
            return tuple(self.methods)
        impossible = {*ON_REQUEST, *(() if self.retain else BY_RETAIN)}
        impossible |= {*(BY_EXAMPLES if self.calibration.estimator == "sampled" else ())}
        n_examples = self.calibration.most_examples
        impossible |= {n for n, fewest in FEWEST_EXAMPLES.items() if n_examples < fewest}
        every: tuple[str, ...] = get_args(MethodName)
        if self.allocation.experts is not None and self.target_parameters is not None:
            every = BY_EACH_EXPERT
        return tuple(name for name in every if name not in impossible)


class JobComparisonRequest(RequestModel):
    """Ask for the plans of several methods from the statistics of a job that has succeeded."""

    budget: AnyBudget
    methods: Methods = None
    allocation: SharedAllocation = Allocation()
    picture: Annotated[bool, Field(description="Answer with a picture, too.")] = False

    @model_validator(mode="after")
    def _floor_fits_mean_rank(self) -> Self:
        check_mean_rank(self.budget, self.allocation)
        return self

    @model_validator(mode="after")
    def _layers_are_chosen(self) -> Self:
        check_layers(self.allocation, self.methods or get_args(MethodName))
        return self
