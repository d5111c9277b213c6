"""What the client sends: bodies built and checked from arguments, before they travel."""

import json
from collections.abc import Iterable, Mapping
from os import SEEK_END
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar, Unpack

from pydantic import BaseModel, ValidationError

from fimlora_client.calls import json_body
from fimlora_client.errors import InvalidFile, ValidationFailed, problem_of
from fimlora_contract.adapter_options import AdapterOptions, LayoutOptions
from fimlora_contract.allocations import Allocation
from fimlora_contract.budgets import Budget
from fimlora_contract.calibrations import Calibration
from fimlora_contract.comparison_requests import ComparisonRequest
from fimlora_contract.evaluations import EvaluationRequest
from fimlora_contract.field_errors import field_error
from fimlora_contract.methods import MethodName
from fimlora_contract.references import (
    HubDataset,
    HubModel,
    InlineDataset,
    LocalDataset,
    LocalModel,
    UploadedDataset,
)
from fimlora_contract.requests import CalibrationRequest, PlanRequest
from fimlora_contract.sweeps import AggregationName

UPLOADS = {
    ".csv": "text/csv",
    ".json": "application/x-ndjson",
    ".jsonl": "application/x-ndjson",
    ".parquet": "application/vnd.apache.parquet",
}
Model = TypeVar("Model", bound=BaseModel)
AnyModel = str | HubModel | LocalModel | Mapping[str, Any]
AnyDataset = (
    str | HubDataset | UploadedDataset | InlineDataset | LocalDataset | Mapping[str, Any]
)
AnyBudget = int | str | Budget | Mapping[str, Any]
AnyRequest = TypeVar("AnyRequest", bound=CalibrationRequest)
Rows = str | Path | Iterable[Mapping[str, Any]]


class CalibrationFields(TypedDict, total=False):
    """The fields of a calibration request as keyword arguments."""

    base_model: AnyModel
    dataset: AnyDataset
    budget: AnyBudget
    retain: AnyDataset | None
    target_modules: list[str] | str | None
    exclude_modules: list[str] | str | None
    target_parameters: list[str] | str | None
    modules_to_save: list[str] | None
    calibration: Calibration | Mapping[str, Any]
    allocation: Allocation | Mapping[str, Any]
    adapter: AdapterOptions | Mapping[str, Any]
    metadata: dict[str, str]
    force: bool
    priority: Literal["normal", "high"]
    deadline_s: float | None
    webhook: str | None


class EvaluationFields(CalibrationFields, total=False):
    """The fields of an evaluation as keyword arguments: those of a calibration, and these."""

    methods: list[MethodName] | None
    plans: dict[str, str]
    eval_split: str | None
    eval_dataset: AnyDataset | None
    eval_share: float | None
    eval_rows: int | None
    seeds: int | None
    steps: int | None
    batch_size: int
    max_length: int
    learning_rates: list[float] | None
    quick: bool


class ComparisonFields(CalibrationFields, total=False):
    """The fields of a comparison as keyword arguments: those of a calibration, and this."""

    methods: list[MethodName] | None


class JobComparisonFields(TypedDict, total=False):
    """The fields of a comparison of what a job has measured as keyword arguments."""

    budget: AnyBudget
    methods: list[MethodName] | None
    allocation: Allocation | Mapping[str, Any]
    picture: bool


class TruncationFields(TypedDict, total=False):
    """The fields of a request to cut an adapter as keyword arguments."""

    budget: AnyBudget | None
    energy: float | None
    r_min: int
    r_max: int | None
    multiple_of: int
    layout: Literal["B", "C"]


class PlanFields(TypedDict, total=False):
    """The fields of a request for another plan as keyword arguments."""

    budget: AnyBudget
    allocation: Allocation | Mapping[str, Any]
    adapter: LayoutOptions | Mapping[str, Any]


class SweepFields(TypedDict, total=False):
    """The fields of a sweep over what a job has measured as keyword arguments."""

    budget: AnyBudget
    aggregations: list[AggregationName]
    n_batches: list[int] | None
    r_min: list[int] | None
    allocation: Allocation | Mapping[str, Any]
    signal: bool


def build_request(
    request: CalibrationRequest | None, **fields: Unpack[CalibrationFields]
) -> CalibrationRequest:
    """The request as given, or built and checked from its fields.

    Raises:
        ValidationFailed: A field is wrong; the same exception the service's refusal raises.
    """
    if request is not None:
        return request.model_copy(update=dict(fields)) if fields else request
    return checked(CalibrationRequest, fields)


def build_evaluation(
    request: EvaluationRequest | None, **fields: Unpack[EvaluationFields]
) -> EvaluationRequest:
    """The evaluation as given, or built and checked from its fields.

    Raises:
        ValidationFailed: A field is wrong; the same exception the service's refusal raises.
    """
    if request is not None:
        return request.model_copy(update=dict(fields)) if fields else request
    return checked(EvaluationRequest, fields)


def build_comparison(
    request: ComparisonRequest | None, **fields: Unpack[ComparisonFields]
) -> ComparisonRequest:
    """The comparison as given, or built and checked from its fields.

    Raises:
        ValidationFailed: A field is wrong; the same exception the service's refusal raises.
    """
    if request is not None:
        return request.model_copy(update=dict(fields)) if fields else request
    return checked(ComparisonRequest, fields)


def for_a_job(request: AnyRequest) -> AnyRequest:
    """The request, if a job is what it asks for.

    Raises:
        ValidationFailed: It only wants to be validated.
    """
    if request.validate_only:
        detail = "validate_only=true makes no job: give the request to estimate()"
        raise ValidationFailed(problem_of("validation_failed", detail))
    return request


def checked(model: type[Model], fields: Mapping[str, Any]) -> Model:
    """A request of some kind from its fields.

    Raises:
        ValidationFailed: A field is wrong.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        found = error.errors(include_url=False)
        errors = [field_error({**e, "loc": ("body", *e["loc"])}, body=model) for e in found]
        problem = problem_of("validation_failed", "the request is not valid", errors=errors)
        raise ValidationFailed(problem) from None


def as_json(model: BaseModel) -> bytes:
    """A checked request as a body."""
    return json_body(model.model_dump(mode="json"))


def upload_of(data: Rows) -> tuple[dict[str, str], bytes | Path]:
    """The headers and the body of an upload: a JSONL, CSV or Parquet file, or rows.

    Raises:
        InvalidFile: There is no such file, or it has another format.
    """
    if not isinstance(data, str | Path):
        return _type_of(".jsonl"), b"".join(json_body(dict(row)) + b"\n" for row in data)
    path = Path(data)
    if path.suffix not in UPLOADS:
        raise InvalidFile(
            f"{path} is not one of {sorted(UPLOADS)}, the formats for uploads",
            next_step="Convert it to one of these, or rename it if it is one.",
        )
    try:
        with path.open("rb") as file:
            # Said beforehand: a body in pieces has no length of its own.
            length = file.seek(0, SEEK_END)
    except OSError as error:
        raise InvalidFile(
            f"cannot read {path}: {error.strerror}",
            next_step="Check where it is; what is registered with the service goes by a plain name.",
        ) from error
    if path.suffix == ".json":
        return _type_of(path.suffix), _lines_of(path)
    return _type_of(path.suffix) | {"content-length": str(length)}, path


def _lines_of(path: Path) -> bytes:
    """A JSON list of rows, as Alpaca and ShareGPT are published, a row per line.

    Raises:
        InvalidFile: It is something else.
    """
    try:
        rows = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        rows = None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InvalidFile(
            f"{path} is no JSON list of rows",
            next_step="Rows with one JSON object per line go by .jsonl.",
        )
    return b"".join(json_body(row) + b"\n" for row in rows)


def _type_of(suffix: str) -> dict[str, str]:
    return {"content-type": UPLOADS[suffix]}


def budget_text(budget: int | str | Budget) -> str:
    """A budget in one word, as a look-up names it.

    Raises:
        ValidationFailed: The text is none.
    """
    if not isinstance(budget, Budget):
        checked(PlanRequest, {"budget": budget})
        return str(budget)
    if budget.unit == "fraction":
        return f"fraction:{budget.value:.12f}".rstrip("0").rstrip(".")
    return f"{budget.unit}:{budget.value:.0f}"
