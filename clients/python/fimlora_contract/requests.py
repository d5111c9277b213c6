"""The body of POST /calibrate.

Only ``base_model``, ``dataset`` and ``budget`` are required, and each has a short form.
Defaults are the paper's best setting: eight batches, mean aggregation, a floor of half the
mean rank and a ceiling of twice the mean rank.
"""

from collections.abc import Collection
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from fimlora_contract.base import RequestModel, is_unknown, json_kind
from fimlora_contract.budgets import (
    BUDGET_UNITS,
    HIGHEST_MEAN_RANK,
    SPELLINGS,
    BudgetUnit,
    check_mean_rank_is_one,
    read_budget,
)
from fimlora_contract.constraints import (
    MOST_TYPES,
    AnyGroups,
    AnyMenu,
    Entry,
    ExpertSelection,
    TypeRule,
    check_types,
)
from fimlora_contract.references import AnyDataset, AnyModel, DatasetReference, Name
from fimlora_contract.targets import AnyExcluded, AnyParameters, AnyTargets
from fimlora_contract.trained_points import check_trained_point
from fimlora_contract.training_time import check_calibrates

# Stricter than the standard, so that no two parsers can see two hosts in one address.
WEBHOOK_URL = (
    r"^(https?)://([A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?)(:[0-9]{1,5})?"
    r"(/[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*)?$"
)
MOST_BATCHES = 4096
MOST_SHARDS = 64
LONGEST_DEADLINE_S = 30 * 24 * 3600
DIGEST = r"^sha256:[0-9a-f]{64}$"
# Those that the engine has, in its order; by spectra, modules may be left out.
MethodName = Literal[
    "fim",
    "coherent",
    "spectral",
    "spectral-denoised",
    "fim-over-null",
    "gora",
    "vila",
    "kappa",
    "eva",
    "fisher-layers",
    "fisher-layers-frobenius",
    "cka-layers",
    "cka-layers-biased",
    "effective-rank",
    "uniform",
    "random",
]
# As a request names one: the names of others that are known are told why they are none.
AskedMethod = Annotated[MethodName, BeforeValidator(check_calibrates)]
BY_SPECTRA = ("spectral", "spectral-denoised", "eva")
# These choose layers and leave out all others.
BY_LAYERS = ("fisher-layers", "fisher-layers-frobenius", "cka-layers", "cka-layers-biased")
# These need each example's energy.
BY_EXAMPLES = ("coherent", "spectral-denoised", "fisher-layers")
# These go by what is recorded of each expert by itself.
BY_EACH_EXPERT = ("fim", "fim-over-null", "vila", "uniform", "random")
# Only where they are named: whole gradients of a large model are more than most memories,
# decomposing all of its weights or of its inputs takes longer than measuring it, and neither layers
# nor inputs of two stacks are taken.
ON_REQUEST = (
    "gora",
    "kappa",
    "eva",
    "fisher-layers-frobenius",
    "cka-layers",
    "cka-layers-biased",
)
# How many examples these compare at least.
FEWEST_EXAMPLES = {
    "coherent": 2,
    "spectral-denoised": 2,
    "cka-layers": 4,
    "cka-layers-biased": 4,
}
BY_RETAIN = ("vila",)  # these hold the dataset against another one


class Budget(RequestModel):
    """What the plan may spend; exactly one of the four units is given."""

    rank: Annotated[int, Field(ge=1, le=HIGHEST_MEAN_RANK)] | None = None
    parameters: Annotated[int, Field(ge=1, le=10**13)] | None = None
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    bytes: Annotated[
        Annotated[int, Field(ge=1, le=10**14)] | None,
        Field(description="Bytes of the LoRA matrices A and B, unpadded."),
    ] = None
    bytes_per_parameter: Literal[2, 4] = 4

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        given = [unit for unit in BUDGET_UNITS if getattr(self, unit) is not None]
        if len(given) != 1:
            raise ValueError(
                f"budget names {given or 'no unit'}; give exactly one of {list(BUDGET_UNITS)}"
            )
        return self

    @property
    def unit(self) -> BudgetUnit:
        """The unit that was given."""
        return next(unit for unit in BUDGET_UNITS if getattr(self, unit) is not None)

    @property
    def value(self) -> float:
        """The amount in that unit."""
        return float(getattr(self, self.unit))


def expand_budget(value: Any) -> Any:
    """Turn a bare integer, the mean rank, or a budget in one word into a budget object.

    Raises:
        ValueError: The value is none of these and no object.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        check_mean_rank_is_one(value)
        return {"rank": value}
    if isinstance(value, str):
        return read_budget(value)
    if isinstance(value, dict | Budget):
        return value
    raise ValueError(
        "must be an integer (the mean rank), an object with exactly one of "
        f"{list(BUDGET_UNITS)}, or text: {SPELLINGS}; it is {json_kind(value)}"
    )


def check_batches(value: Any) -> Any:
    """Refuse what is neither a number of batches nor ``auto``, in one sentence for both.

    Raises:
        ValueError: Says what is allowed.
    """
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if value != "auto" and not (is_whole and 1 <= value <= MOST_BATCHES):
        raise ValueError(f"must be a whole number from 1 to {MOST_BATCHES}, or auto")
    return value


Batches = Annotated[int, Field(ge=1, le=MOST_BATCHES)] | Literal["auto"]


class Calibration(RequestModel):
    """How the statistics are measured."""

    n_batches: Annotated[
        Batches,
        BeforeValidator(check_batches, json_schema_input_type=Batches),
        Field(
            description="With auto, 4, 8, 16 ... batches are measured, until the plan is expected "
            "to move by no more than the tolerance if other rows were drawn."
        ),
    ] = 8
    tolerance: Annotated[
        Annotated[float, Field(gt=0, lt=1)],
        Field(
            description="With n_batches auto: up to which share of its ranks (or parameters) a "
            "plan may be expected to move with other rows."
        ),
    ] = 0.05
    max_batches: Annotated[
        Annotated[int, Field(ge=1, le=MOST_BATCHES)],
        Field(description="With n_batches auto: batches at most."),
    ] = 64
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 8
    max_length: Annotated[int, Field(ge=8, le=131_072)] = 512
    estimator: Annotated[
        Literal["auto", "exact", "sketched", "sampled"],
        Field(
            description="How the Fisher information is estimated: exactly, by an unbiased sketch "
            "of that whose cost does not grow with the length, or by one random A as in the "
            "published code. auto is exact where that adds less than a tenth to the arithmetic of "
            "a pass, else sketched; provenance says which."
        ),
    ] = "auto"
    signal: Annotated[
        bool,
        Field(
            description="Whether to measure also how much of the plan follows from the labels: a "
            "second backward pass, under labels of other rows. It changes no plan."
        ),
    ] = True
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    task: Annotated[
        Literal["auto", "sequence_classification", "regression", "causal_lm"],
        Field(
            description="With auto, rows with a label are classified, or a regression if the "
            "labels are numbers of which one is not whole."
        ),
    ] = "auto"
    chat_labels: Annotated[
        Literal["assistant", "last", "all"],
        Field(
            description="Which tokens of chat rows are predicted: all that the assistant "
            "writes, its last turn, or every token."
        ),
    ] = "assistant"
    head: Annotated[
        Literal["fitted", "fresh"],
        Field(
            description="A task head that the checkpoint lacks: its last linear map fitted on "
            "the features of the frozen model before anything is measured, or left as drawn, "
            "which drowns the task. A head of the checkpoint stays as it is."
        ),
    ] = "fitted"
    head_rows: Annotated[
        int,
        Field(
            ge=2,
            le=65_536,
            description="Rows that the head is fitted on at most: others than those that are "
            "measured, if there are as many as of these, else these and the others.",
        ),
    ] = 1024
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    executor: Annotated[
        Literal["auto", "resident", "streamed"],
        Field(
            description="Whether the model is held in memory or streamed from disk, block by "
            "block; auto goes by the memory there is. It changes no result."
        ),
    ] = "auto"
    shards: Annotated[
        Annotated[int, Field(ge=1, le=MOST_SHARDS)] | Literal["auto"],
        Field(
            description="In how many parts the batches are measured, each by whichever worker is "
            "free; auto takes as many as there are workers on devices of one kind, and 1 where "
            "batches cannot be measured apart. It changes no result."
        ),
    ] = 1
    adapter: Annotated[
        Name | None,
        Field(
            description="A trained adapter, by its id (ad_...) or registered name, to measure at: "
            "the model runs with it, its modules are the targets, and their scores are the mean "
            "squared gradients of its own A and B. Resident only."
        ),
    ] = None

    @property
    def most_batches(self) -> int:
        """Batches that may be measured."""
        return self.max_batches if self.n_batches == "auto" else self.n_batches

    @property
    def most_examples(self) -> int:
        """Examples that may be measured."""
        return self.most_batches * self.batch_size


class Allocation(RequestModel):
    """How the budget is shared."""

    method: Annotated[
        AskedMethod,
        Field(
            description="What ranks are shared by; docs/methods.md says what each looks at. All but "
            "fim and the two controls, uniform and random, are experimental: not shown to beat "
            "uniform."
        ),
    ] = "fim"
    aggregation: Literal["mean", "max", "l2"] = "mean"
    r_min: Annotated[
        Annotated[int, Field(ge=0, le=4096)] | None,
        Field(description="At least 1; 0 only with a method by spectra, for modules left out."),
    ] = None
    r_max: Annotated[int, Field(ge=1, le=8192)] | None = None
    multiple_of: Annotated[int, Field(ge=1, le=256)] = 1
    n_layers: Annotated[
        Annotated[int, Field(ge=1, le=4096)] | None,
        Field(
            description="How many layers a method by layers chooses; half of them if left out. "
            "r_min and r_max are of the modules in these layers then."
        ),
    ] = None
    rank_menu: Annotated[
        AnyMenu,
        Field(
            description="The ranks that are allowed, rising; or powers-of-two, or vllm: what that "
            "server allots. In place of multiple_of. What it misses of the budget is unspent."
        ),
    ] = []
    groups: Annotated[
        AnyGroups,
        Field(
            description="Modules that get one common rank: for each group a list of names, dotted "
            "endings, or either with * for any characters; or type: those of one kind over all "
            "layers; fused: what servers pack, q/k/v, gate/up and the experts of one layer; layer."
        ),
    ] = []
    per_type: Annotated[
        dict[Entry, TypeRule],
        AfterValidator(check_types),
        Field(
            max_length=MOST_TYPES,
            description="Floor, ceiling and share of the budget for the modules that a name, a "
            "dotted ending or a pattern with * names, or `family:` and the name of a family. The "
            "controls keep to them as well.",
        ),
    ] = {}
    max_lora_rank: Annotated[
        Annotated[int, Field(ge=1, le=8192)] | None,
        Field(description="The highest rank that a server allows: it caps every ceiling."),
    ] = None
    experts: Annotated[
        ExpertSelection | None,
        Field(
            exclude_if=is_unknown,
            description="Of a mixture, which experts train. A budget in parameters counts these "
            "alone. Their initial weights alone say which they are, so a job writes them: "
            "adapter.weights. Null: all experts.",
        ),
    ] = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.r_min is not None and self.r_max is not None and self.r_min > self.r_max:
            raise ValueError(f"r_min={self.r_min} is above r_max={self.r_max}")
        if self.rank_menu and self.multiple_of != 1:
            raise ValueError("multiple_of beside a rank_menu: a menu has all ranks there are")
        self._check_floors()
        return self

    def _check_floors(self) -> None:
        """Refuse a floor of 0 where no module may be left out, and one that a server forbids."""
        floors = {
            f"per_type[{name!r}].r_min": rule.r_min for name, rule in self.per_type.items()
        }
        for name, floor in {"r_min": self.r_min, **floors}.items():
            if floor == 0 and self.method not in BY_SPECTRA:
                raise ValueError(
                    f"{name}=0 with method {self.method}: it must be at least 1; only method "
                    f"{' or '.join(BY_SPECTRA)} may leave modules out"
                )
            if floor is not None and floor > (self.max_lora_rank or floor):
                raise ValueError(f"{name}={floor} is above max_lora_rank={self.max_lora_rank}")


def whole_if_it_is(value: int | float) -> int | float:
    """Let 2.0 be 2, so that both are one request."""
    return int(value) if value == int(value) else value


def check_number(value: Any) -> Any:
    """Refuse what is no number, in one sentence for whole and other ones.

    Raises:
        ValueError: Says what was given.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"must be a number; it is {json_kind(value)}")
    if not abs(value) < 1e300:  # a whole number may be too large for any float
        raise ValueError("must be a finite number")
    return value


Number = Annotated[
    int | float,
    BeforeValidator(check_number, json_schema_input_type=int | float),
    AfterValidator(whole_if_it_is),
]


class LayoutOptions(RequestModel):
    """How the adapter config is written; see the README for the two layouts."""

    layout: Literal["B", "C"] = "B"
    scale: Annotated[
        Number,
        Field(ge=2**-10, le=1024, description="Alpha over rank, the same for all modules."),
    ] = 2
    alpha: Annotated[
        Annotated[Number, Field(ge=2**-10, le=65_536)] | None,
        Field(
            description="One alpha for all modules in place of one scale: each has alpha over its "
            "rank then, as in the paper's published code. Layout B only."
        ),
    ] = None
    rslora: Annotated[
        bool,
        Field(description="With alpha: divided by the root of the rank (use_rslora of PEFT)."),
    ] = False

    @model_validator(mode="after")
    def _one_scaling(self) -> Self:
        if self.rslora and self.alpha is None:
            raise ValueError("rslora needs alpha, the one alpha of all modules")
        if self.alpha is not None and self.scale != 2:
            raise ValueError(
                f"scale={self.scale} and alpha={self.alpha}: give one of both; with alpha, scales "
                "follow from ranks"
            )
        if self.alpha is not None and self.layout == "C":
            raise ValueError(
                "layout C has one scale for all modules, which alpha does not give: take layout B, "
                "or scale"
            )
        return self

    @property
    def scaling(self) -> dict[str, Any]:
        """How alphas follow from ranks, as the engine takes it."""
        return {"scale": self.scale, "alpha": self.alpha, "rslora": self.rslora}


# Those that the engine has, in its order.
InitName = Literal["kaiming", "eva", "lora-ga", "lora-one", "gora", "zeros"]
NOT_IN_SHARDS = ("eva",)  # method and init: each batch updates what those before it came to
NOT_ADDED_UP = (
    "eva",
    "lora-ga",
    "lora-one",
)  # what these are made of does not add up over rounds


class AdapterOptions(LayoutOptions):
    """How the adapter is written, and whether with initial weights."""

    weights: bool = False
    init: Annotated[
        InitName | None,
        Field(
            description="Which initial weights, whatever the method of the allocation; a name "
            "means weights: true. kaiming (what weights: true alone writes): A random, B zero. "
            "eva: A the leading directions of the inputs, B zero. "
            "lora-one and gora: B A is a step down the mean gradient, so the adapter does not "
            "begin as the base model. lora-ga: needs a changed base model. zeros: does not "
            "train. What an adapter begins with is the first warning of its plan."
        ),
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _init_means_weights(cls, given: Any) -> Any:
        """Let one spelling stand for each choice, so that equal requests are equal."""
        if not isinstance(given, dict):
            return given
        init, weights = given.get("init"), given.get("weights")
        if init is not None and weights is False:
            raise ValueError(f"init={init!r} with weights=false: initial weights are weights")
        if init is not None:
            return {**given, "weights": True}
        return {**given, "init": "kaiming"} if weights is True else given

    @property
    def initial(self) -> InitName:
        """The initial weights that are, or would be, written."""
        return self.init or "kaiming"


AnyBudget = Annotated[
    Budget, BeforeValidator(expand_budget, json_schema_input_type=int | str | Budget)
]


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
    n_batches: int | str = 1,
) -> None:
    """Refuse a selection of experts that goes with something else not."""
    if allocation.experts is None:
        return
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
    if n_batches == "auto":
        raise ValueError(
            "allocation.experts with n_batches=auto: how sure a plan is is not known where experts "
            "are selected; give a number of batches"
        )


def check_all_experts(allocation: Allocation) -> Allocation:
    """Refuse a selection of experts where several plans are made, or trained."""
    if allocation.experts is not None:
        raise ValueError(
            "allocation.experts has no meaning here: all experts of a target train; select some in "
            "POST /calibrate, or in POST /jobs/{id}/allocate"
        )
    return allocation


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

    @model_validator(mode="after")
    def _experts_can_be_selected(self) -> Self:
        check_experts(self.allocation, self.budget, (self.allocation.method,))
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
        check_experts(
            self.allocation,
            self.budget,
            self.methods_measured,
            n_batches=self.calibration.n_batches,
        )
        if self.allocation.experts is not None and not self.adapter.weights:
            raise ValueError(
                "allocation.experts with adapter.weights=false: initial weights alone say which "
                "experts train, and from adapter_config.json all would; give adapter.weights=true"
            )
        if self.allocation.experts is not None and self.adapter.initial != "kaiming":
            raise ValueError(
                f"allocation.experts with adapter.init={self.adapter.init}: kaiming alone is "
                "written for some experts; take that, or leave one of both out"
            )
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
