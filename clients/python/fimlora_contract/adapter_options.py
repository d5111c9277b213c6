"""How an adapter is written: its layout, its scaling, its initial weights."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from fimlora_contract.base import RequestModel, json_kind


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
