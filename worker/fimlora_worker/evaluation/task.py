"""What all runs of an evaluation share: the model, the arms, the examples."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fimlora.measuring.examples.losses import LossKind
from fimlora.model.input_limits import input_limits
from fimlora_jobs.datasets.columns import TaskName
from fimlora_jobs.datasets.table import Rows
from fimlora_worker.evaluation.arms import Arm, check_equal, check_saved
from fimlora_worker.evaluation.data import EvaluationData, encode
from fimlora_worker.evaluation.settings import EvaluationSettings
from fimlora_worker.evaluation.split import hold_out
from fimlora_worker.inputs.base_model import BaseModel
from fimlora_worker.inputs.calibration_data import check_token_ids
from fimlora_worker.inputs.examples import Encoder


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Task:
    """Everything that training needs beside the run.

    Attributes:
        model: The base model, and how it is wanted.
        arms: By name.
        data: Examples to train and to test on.
        settings: Of the evaluation.
        head: Tensors that the head starts from, by name, if not from those drawn for it.
    """

    model: BaseModel
    arms: Mapping[str, Arm]
    data: EvaluationData
    settings: EvaluationSettings
    head: Mapping[str, Any] | None = None

    @property
    def kind(self) -> LossKind:
        """How labels become the model's loss."""
        request = self.model.request
        return LossKind(request.problem_type or request.task)

    @property
    def pad_id(self) -> int:
        """Token that fills up examples."""
        return self.model.pad_token_id or 0


def task_for(
    settings: EvaluationSettings,
    arms: Mapping[str, Arm],
    model: BaseModel,
    rows: Rows,
    held_out_rows: Rows | None,
    encoder: Encoder,
    *,
    task: TaskName = "auto",
    head: Mapping[str, Any] | None = None,
    alive: Callable[[], None] = _nothing,
) -> Task:
    """Split, encode, and see that the arms can be compared.

    Args:
        settings: Of the evaluation.
        arms: By name.
        model: The base model.
        rows: The dataset.
        held_out_rows: A split of its own to test on, if there is one.
        encoder: Makes examples of rows; its labels are those of the training rows.
        task: As the request has it.
        head: Tensors that the head starts from.
        alive: Called for each row.

    Raises:
        UnequalArms: The arms do not spend the same, or save other modules whole.
        DatasetEmpty: Nothing is left to train on, or to test on.
    """
    check_equal(arms)
    check_saved(arms, {each.name: each.parameters for each in model.saved})
    split = hold_out(rows, encoder.fields, settings, own=held_out_rows, task=task)
    data = encode(split, encoder, settings, on_example=alive)
    n_ids = input_limits(model.outline()).n_ids
    check_token_ids([*data.train, *data.held_out], encoder.tokenizer, n_ids)
    return Task(model, arms, data, settings, head)
