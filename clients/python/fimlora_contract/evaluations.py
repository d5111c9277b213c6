"""The body of POST /evaluations, and its answers.

An *arm* is a rank pattern that is trained; a *run* is one training of one arm at one learning
rate with one seed. Every arm is tuned on the same grid of rates, then trained with the final
seeds. ``uniform`` and ``random`` are always among the arms: without them there is no verdict.
"""

from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from fimlora_contract.allocations import Allocation
from fimlora_contract.base import AnswerModel
from fimlora_contract.jobs import Job, JobKind
from fimlora_contract.methods import AskedMethod, MethodName
from fimlora_contract.references import (
    AnyDataset,
    DatasetReference,
    HubDataset,
    InlineDataset,
    Name,
)
from fimlora_contract.request_checks import check_trained_experts
from fimlora_contract.requests import CalibrationRequest
from fimlora_contract.verdicts import EvaluationResult

CONTROLS: tuple[MethodName, ...] = ("uniform", "random")
# Where experts are selected, the control of that.
RANDOM_EXPERTS = "random-experts"
MOST_RUNS = 500
# Rows that a run may train on, repeated ones included: their order is kept in memory.
MOST_TRAINED_ROWS = 1_000_000
# Fewer rows to test on tell nothing.
FEWEST_HELD_OUT = 8
EVAL_SHARE = 0.2
# A content address, a job that made a plan, or a pin.
PLAN_REFERENCE = (
    r"^(sha256:[0-9a-f]{64}|job_[0-9a-f]{23}"
    r"|[A-Za-z0-9][A-Za-z0-9._-]{0,63}/[A-Za-z0-9][A-Za-z0-9._-]{0,63})$"
)
PlanReference = Annotated[str, Field(pattern=PLAN_REFERENCE)]
Rate = Annotated[float, Field(gt=0, le=10)]


class Schedule(NamedTuple):
    """How much is trained: for a small encoder on two cores half an hour, or a first look.

    Attributes:
        n_seeds: Final runs of each arm.
        n_tuning_seeds: Runs of each arm at each rate of the grid.
        n_rates: Rates of the grid.
        n_steps: Optimiser steps of a run.
        n_eval_rows: Held-out rows, at most.
        n_points: Tests during a run, the last one at its end.
    """

    n_seeds: int
    n_tuning_seeds: int
    n_rates: int
    n_steps: int
    n_eval_rows: int
    n_points: int


FULL = Schedule(5, 1, 4, 64, 256, 4)
QUICK = Schedule(3, 1, 3, 32, 128, 2)


class EvaluationRequest(CalibrationRequest):
    """Ask whether a choice of ranks helps on a task: train it beside uniform and random ranks.

    What it shares with POST /calibrate says how plans are made; all arms then spend the same
    parameters, those of uniform ranks at the budget.
    """

    allocation: Annotated[
        Allocation,
        Field(
            description="How the budget is shared. With experts, the plans of methods and random "
            "train selected ones, uniform trains all, and an arm more, random-experts, as many "
            "random ones in each layer."
        ),
    ] = Allocation()
    methods: Annotated[
        Annotated[list[AskedMethod], Field(max_length=8)] | None,
        Field(
            description="Methods whose plans are trained; by default fim, or none where plans "
            "are given. The controls uniform and random always are."
        ),
    ] = None
    plans: Annotated[
        dict[Name, PlanReference],
        Field(
            max_length=8,
            description="Plans that are there, each under the name of its arm: by digest, by "
            "the id of the job that made it, or as name/tag of a pin.",
        ),
    ] = {}
    eval_split: Annotated[
        Name | None, Field(description="Split of a hub dataset that is held out.")
    ] = None
    eval_dataset: Annotated[
        AnyDataset | None, Field(description="Another dataset that is held out, not inline.")
    ] = None
    eval_share: Annotated[
        Annotated[float, Field(gt=0, lt=1)] | None,
        Field(description="Part of the rows that is held out where nothing else is; 0.2."),
    ] = None
    eval_rows: Annotated[
        Annotated[int, Field(ge=FEWEST_HELD_OUT, le=100_000)] | None,
        Field(description="Held-out rows, at most; 256, or 128 with quick."),
    ] = None
    seeds: Annotated[
        Annotated[int, Field(ge=2, le=100)] | None,
        Field(description="Final runs of each arm; 5, or 3 with quick."),
    ] = None
    steps: Annotated[
        Annotated[int, Field(ge=1, le=1_000_000)] | None,
        Field(
            description="Optimiser steps of a run; 64, or 32 with quick. Times batch_size at "
            f"most {MOST_TRAINED_ROWS:,}."
        ),
    ] = None
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 16
    max_length: Annotated[
        int, Field(ge=8, le=131_072, description="Tokens of a row; longer ones are cut.")
    ] = 64
    learning_rates: Annotated[
        Annotated[list[Rate], Field(min_length=2, max_length=12)] | None,
        Field(
            description="The grid, ascending; by default it depends on the task. It is widened "
            "once at an edge where some arm is best."
        ),
    ] = None
    quick: Annotated[bool, Field(description="Fewer rates, seeds, steps: a first look.")] = (
        False
    )

    @model_validator(mode="after")
    def _from_the_base_model(self) -> Self:
        if self.calibration.adapter is not None:
            raise ValueError(
                "calibration.adapter: an evaluation trains from the base model, whose plans are to "
                "be measured there; leave it out"
            )
        if self.calibration.shards != 1:
            raise ValueError(
                f"calibration.shards={self.calibration.shards}: workers share the training runs of "
                "an evaluation, and its plans are measured by the one that leads; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _one_scale(self) -> Self:
        if self.adapter.alpha is not None:
            raise ValueError(
                "adapter.alpha has no meaning here: all arms must have one scale, and one alpha "
                "gives each rank another, which is another learning rate; give adapter.scale"
            )
        return self

    @model_validator(mode="after")
    def _one_held_out(self) -> Self:
        given = [
            name
            for name in ("eval_split", "eval_dataset", "eval_share")
            if getattr(self, name) is not None
        ]
        if len(given) > 1:
            raise ValueError(f"{given} were given; give one of them: what is held out")
        if self.eval_split and not isinstance(self.dataset, HubDataset):
            raise ValueError(
                "eval_split is for datasets of the hub, which have splits; give eval_dataset, "
                "or eval_share for a part of the rows"
            )
        if self.eval_split and self.eval_split == getattr(self.dataset, "split", None):
            raise ValueError(
                f"eval_split={self.eval_split!r} is the split that is trained on; name another"
            )
        if isinstance(self.eval_dataset, InlineDataset):
            raise ValueError("eval_dataset is inline; upload its rows and give the upload")
        return self

    @model_validator(mode="after")
    def _arms_are_distinct(self) -> Self:
        if self.allocation.method != "fim":
            raise ValueError(
                f"allocation.method={self.allocation.method!r} has no meaning here; "
                "give it in methods"
            )
        named = [name for name in self.plans if name in {*CONTROLS, *(self.methods or ())}]
        if named:
            raise ValueError(f"plans are named {named} as methods are; give other names")
        if self.adapter.weights:
            raise ValueError(
                "adapter.weights and adapter.init have no meaning here: no adapter is written, "
                "and all arms begin with LoRA's own weights"
            )
        return self

    @model_validator(mode="after")
    def _experts_have_a_control(self) -> Self:
        has_plans = bool(self.plans)
        check_trained_experts(self.allocation, self.wanted_methods, has_plans=has_plans)
        return self

    @model_validator(mode="after")
    def _not_too_many_runs(self) -> Self:
        rates = self.learning_rates or []
        if rates != sorted(set(rates)):
            raise ValueError(f"learning_rates={rates}: ascending, each once")
        if self.most_runs > MOST_RUNS:
            raise ValueError(
                f"{self.most_runs} runs would be trained, with {len(self.arms)} arms; at most "
                f"{MOST_RUNS} are: give fewer methods, plans, learning_rates or seeds"
            )
        return self

    @model_validator(mode="after")
    def _not_too_many_rows(self) -> Self:
        n_steps = self.schedule.n_steps
        if n_steps * self.batch_size > MOST_TRAINED_ROWS:
            raise ValueError(
                f"steps={n_steps} with batch_size={self.batch_size} are "
                f"{n_steps * self.batch_size:,} rows in each run; at most {MOST_TRAINED_ROWS:,} "
                "are trained on: give fewer steps, or a smaller batch_size"
            )
        return self

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms, the controls last."""
        controls = (*CONTROLS, *([RANDOM_EXPERTS] if self.allocation.experts else []))
        return tuple(dict.fromkeys([*self.wanted_methods, *self.plans, *controls]))

    @property
    def wanted_methods(self) -> tuple[MethodName, ...]:
        """The methods that were asked for, or go without saying."""
        if self.methods is not None:
            return tuple(dict.fromkeys(self.methods))
        return () if self.plans else ("fim",)

    @property
    def methods_measured(self) -> tuple[str, ...]:
        """The methods that plans are made by; they say what is measured."""
        return tuple(dict.fromkeys([*self.wanted_methods, *CONTROLS]))

    @property
    def measures_signal(self) -> bool:
        """Never: no part of what is found states it."""
        return False

    @property
    def schedule(self) -> Schedule:
        """How much is trained, with what was asked for in place of the defaults."""
        preset = QUICK if self.quick else FULL
        return preset._replace(
            n_seeds=self.seeds or preset.n_seeds,
            n_rates=len(self.learning_rates or ()) or preset.n_rates,
            n_steps=self.steps or preset.n_steps,
            n_eval_rows=self.eval_rows or preset.n_eval_rows,
        )

    @property
    def n_runs(self) -> int:
        """Runs without a widened grid."""
        return self._runs_at(self.schedule.n_rates)

    @property
    def most_runs(self) -> int:
        """Runs if the grid is widened at both ends."""
        return self._runs_at(self.schedule.n_rates + 2)

    @property
    def writes_adapter(self) -> bool:
        """Whether what comes of it is an adapter's folder."""
        return False

    @property
    def held_out(self) -> DatasetReference | None:
        """The dataset that is held out; ``None`` for a part of the one that is trained on."""
        if self.eval_split:
            return self.dataset.model_copy(update={"split": self.eval_split})
        return self.eval_dataset

    def _runs_at(self, n_rates: int) -> int:
        schedule = self.schedule
        return len(self.arms) * (n_rates * schedule.n_tuning_seeds + schedule.n_seeds)


class Evaluation(Job):
    """An evaluation: everything that a job is, and what it found."""

    kind: Literal[JobKind.EVALUATION] = JobKind.EVALUATION
    result: EvaluationResult | None = Field(None, description="Set only when succeeded.")


class EvaluationPage(AnswerModel):
    """Newest evaluations first; pass ``next_cursor`` as ``cursor`` for the following page."""

    object: Literal["list"] = "list"
    data: list[Evaluation]
    next_cursor: str | None = None
