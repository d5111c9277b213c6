"""How a dataset is measured: batches, their size, the estimator, shards."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from fimlora_contract.base import RequestModel
from fimlora_contract.references import Name

MOST_BATCHES = 4096
MOST_SHARDS = 64


def number_or_auto(most: int) -> Callable[[Any], Any]:
    """Check that a value is a number from 1 up to `most`, or ``auto``: one sentence for both.

    Without it, a value that is neither is refused once for each, by names of the validator's.
    """

    def check(value: Any) -> Any:
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if value != "auto" and not (is_whole and 1 <= value <= most):
            raise ValueError(f"must be a whole number from 1 to {most}, or auto")
        return value

    return check


Batches = Annotated[int, Field(ge=1, le=MOST_BATCHES)] | Literal["auto"]
Shards = Annotated[int, Field(ge=1, le=MOST_SHARDS)] | Literal["auto"]


class Calibration(RequestModel):
    """How the statistics are measured."""

    n_batches: Annotated[
        Batches,
        BeforeValidator(number_or_auto(MOST_BATCHES), json_schema_input_type=Batches),
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
        Shards,
        BeforeValidator(number_or_auto(MOST_SHARDS), json_schema_input_type=Shards),
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
