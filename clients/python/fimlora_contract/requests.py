"""The body of POST /calibrate.

Only ``base_model``, ``dataset`` and ``budget`` are required, and each has a short form.
Defaults are what the paper recommends: eight batches, mean aggregation, a floor of half the
mean rank and a ceiling of twice the mean rank. That they are best is not shown.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fimlora_contract.adapter_options import AdapterOptions, LayoutOptions
from fimlora_contract.allocations import Allocation
from fimlora_contract.base import RequestModel
from fimlora_contract.budgets import AnyBudget
from fimlora_contract.calibrations import Calibration
from fimlora_contract.methods import BY_EXAMPLES
from fimlora_contract.references import AnyDataset, AnyModel, DatasetReference
from fimlora_contract.request_checks import (
    NOT_ADDED_UP,
    check_examples,
    check_experts,
    check_layers,
    check_mean_rank,
    check_retain,
    check_rounds,
    check_shards,
    check_written,
    why_not_in_shards,
)
from fimlora_contract.targets import AnyExcluded, AnyParameters, AnySaved, AnyTargets
from fimlora_contract.trained_points import check_trained_point

# Stricter than the standard, so that no two parsers can see two hosts in one address.
WEBHOOK_URL = (
    r"^(https?)://([A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?)(:[0-9]{1,5})?"
    r"(/[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*)?$"
)
LONGEST_DEADLINE_S = 30 * 24 * 3600
DIGEST = r"^sha256:[0-9a-f]{64}$"


class PlanRequest(RequestModel):
    """Ask for another plan from the statistics of a job that has succeeded.

    What is left out has the default it has in POST /calibrate, not the job's own value. The answer
    is a plan and its config, without weights: it says nothing of the job's initial ones. POST
    /calibrate with adapter.init writes those of the new plan, from the same statistics.
    """

    budget: AnyBudget
    allocation: Allocation = Allocation()
    adapter: LayoutOptions = LayoutOptions()

    @model_validator(mode="after")
    def _floor_fits_mean_rank(self) -> Self:
        check_mean_rank(self.budget, self.allocation)
        return self

    @model_validator(mode="after")
    def _layers_are_chosen(self) -> Self:
        check_layers(self.allocation, (self.allocation.method,))
        return self


class PinRequest(RequestModel):
    """Let a name and tag stand for a result: its digest, or the job that made it."""

    digest: Annotated[str, Field(pattern=DIGEST)] | None = None
    job_id: Annotated[str, Field(min_length=1, max_length=64)] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.digest is None) == (self.job_id is None):
            raise ValueError("give exactly one of digest and job_id")
        return self


class CalibrationRequest(RequestModel):
    """Ask for a rank plan for one base model, one dataset and one budget."""

    base_model: AnyModel
    dataset: AnyDataset
    budget: AnyBudget
    retain: Annotated[
        AnyDataset | None,
        Field(
            description="Another dataset, whose function is to be kept: method vila puts modules "
            "first that matter for the dataset and not for this one. It is measured after the "
            "dataset, by as many batches and under the same head, and must have the same columns "
            "and no class of its own."
        ),
    ] = None
    target_modules: Annotated[
        AnyTargets,
        Field(
            description="Names or dotted endings of the loaded model's modules; all-linear; or a "
            "regular expression over full names. Null: the convention of the architecture."
        ),
    ] = None
    exclude_modules: Annotated[
        AnyExcluded,
        Field(
            description="What to leave out of the target modules: names or endings, or a regular "
            "expression over full names."
        ),
    ] = None
    target_parameters: Annotated[
        AnyParameters,
        Field(
            description="Fused experts of a mixture that are targets besides, as in PEFT: all, or "
            "names or dotted endings of parameters. Each gets one rank for all its experts. Null: "
            "none, and the rank map lists them under not_targeted."
        ),
    ] = None
    modules_to_save: Annotated[
        AnySaved,
        Field(
            description="Modules that train whole beside LoRA, as in PEFT, such as lm_head: names or "
            "dotted endings. The budget does not count them; the plan's provenance has how many "
            "parameters they are. Nothing inside one is a target. The new head of a classification "
            "is among them whatever is said here."
        ),
    ] = None
    calibration: Calibration = Calibration()
    allocation: Allocation = Allocation()
    adapter: AdapterOptions = AdapterOptions()
    metadata: Annotated[
        dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
        Field(max_length=16),
    ] = {}
    force: bool = False
    priority: Annotated[
        Literal["normal", "high"],
        Field(description="A job of high priority waits for no normal one."),
    ] = "normal"
    deadline_s: Annotated[
        Annotated[float, Field(gt=0, le=LONGEST_DEADLINE_S)] | None,
        Field(
            description="Seconds from acceptance after which a job that has not ended fails "
            "with code timeout; such a job is not shared with equal requests."
        ),
    ] = None
    webhook: Annotated[
        Annotated[str, Field(max_length=2048, pattern=WEBHOOK_URL)] | None,
        Field(
            description="Address that is told of the job's end; its host must be allowed by the "
            "operator. Answers do not show it, and a cached answer calls none."
        ),
    ] = None
    validate_only: Annotated[
        bool, Field(description="Answer with an estimate, as POST /estimate does; no job.")
    ] = False

    @model_validator(mode="after")
    def _rounds_add_up(self) -> Self:
        check_rounds(self.calibration, self.allocation, self.methods_measured)
        if self.calibration.n_batches == "auto" and self.adapter.init in NOT_ADDED_UP:
            raise ValueError(
                f"n_batches=auto with init {self.adapter.init}: the directions of gradients do "
                "not add up over rounds; give a number of batches, or take init gora"
            )
        return self

    @model_validator(mode="after")
    def _floor_fits_mean_rank(self) -> Self:
        check_mean_rank(self.budget, self.allocation)
        return self

    @model_validator(mode="after")
    def _layers_are_chosen(self) -> Self:
        check_layers(self.allocation, self.methods_measured)
        return self

    @model_validator(mode="after")
    def _estimator_fits_method(self) -> Self:
        needing = [name for name in self.methods_measured if name in BY_EXAMPLES]
        if needing and self.calibration.estimator == "sampled":
            raise ValueError(
                f"method {needing[0]} needs the energy of each example's gradient, which estimator "
                "sampled does not give: use auto, exact or sketched"
            )
        return self

    @model_validator(mode="after")
    def _experts_can_be_selected(self) -> Self:
        has_fused = self.target_parameters is not None
        check_experts(
            self.allocation,
            self.budget,
            self.methods_measured,
            has_fused=has_fused,
            n_batches=self.calibration.n_batches,
        )
        if self.writes_adapter:
            check_written(self.allocation, self.adapter, has_fused=has_fused)
        return self

    @model_validator(mode="after")
    def _examples_suffice(self) -> Self:
        check_examples(self.calibration, self.methods_measured)
        return self

    @model_validator(mode="after")
    def _shards_add_up(self) -> Self:
        check_shards(
            self.calibration,
            self.methods_measured,
            init=self.adapter.init,
            has_retain=self.retain is not None,
        )
        return self

    @property
    def why_not_in_shards(self) -> str | None:
        """Why its batches cannot be measured apart from each other, if they cannot."""
        return why_not_in_shards(
            self.calibration,
            self.methods_measured,
            init=self.adapter.init,
            has_retain=self.retain is not None,
        )

    @model_validator(mode="after")
    def _trained_point_can_be(self) -> Self:
        if self.calibration.adapter is not None:
            check_trained_point(self)
        return self

    @model_validator(mode="after")
    def _retain_is_read(self) -> Self:
        check_retain(self.retain, self.methods_measured)
        return self

    @property
    def measures_signal(self) -> bool:
        """Whether the null and the halves are measured for the plan's signal."""
        return self.calibration.signal

    @property
    def methods_measured(self) -> tuple[str, ...]:
        """The methods whose plans are asked for: what they need is measured."""
        return (self.allocation.method,)

    @property
    def writes_adapter(self) -> bool:
        """Whether what comes of it is an adapter's folder."""
        return True

    @property
    def held_out(self) -> DatasetReference | None:
        """Another dataset that is asked for, to test on what was trained."""
        return None
