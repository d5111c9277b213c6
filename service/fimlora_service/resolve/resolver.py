"""From names to content, before anything is queued: the first of the three stages.

Whatever can be known without a device is checked here, so that a wrong request is refused
in the answer to it and not minutes later in a job.
"""

from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fimlora_contract import __version__
from fimlora_contract.digests import digest_of
from fimlora_contract.references import (
    HubDataset,
    HubModel,
    InlineDataset,
    LocalDataset,
    UploadedDataset,
)
from fimlora_contract.requests import CalibrationRequest
from fimlora_jobs.data_folder import DataFolder
from fimlora_jobs.datasets.checks import check_rows, survey
from fimlora_jobs.datasets.columns import (
    NO_CHAT_TEMPLATE,
    ColumnError,
    Task,
    TextFields,
    find_fields,
    used_columns,
)
from fimlora_jobs.datasets.folders import FolderDigests
from fimlora_jobs.datasets.rows import RowError, read_inline
from fimlora_service.datasets.local import columns_of, data_files, read_rows
from fimlora_service.datasets.uploads import find_upload
from fimlora_service.errors import DatasetEmpty, DatasetSchema, DatasetUnreachable
from fimlora_service.resolve.local_models import LocalModels
from fimlora_service.resolve.model_files import ResolvedModel
from fimlora_service.resolve.target_checks import check_targets

if TYPE_CHECKING:  # it brings the hub's library along, which not every request needs
    from fimlora_service.resolve.hub import Hub

LOCAL_ROWS_CHECKED = 10_000
TaskName = Task | Literal["auto"]


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a request means, by content.

    Attributes:
        references: What goes on the job's record as ``resolved``.
        digest: Key of the result cache: equal for requests that must give equal results.
        statistics_digest: Key of the statistics: equal for requests that measure the same.
        model: The base model.
        tenant: Who may find the result by its inputs; empty for everybody.
    """

    references: dict[str, Any]
    digest: str
    statistics_digest: str
    model: ResolvedModel
    tenant: str = ""


MEASURED = frozenset({"target_modules", "calibration"})
PLANNED = frozenset({"allocation", "adapter", "budget"})
# Where the weights are while they are measured changes no number.
NEITHER = {"calibration": {"executor"}}


def request_digest(
    request: CalibrationRequest,
    *,
    model_digest: str,
    dataset: Mapping[str, Any],
    tenant: str = "",
    settings: Set[str] = MEASURED | PLANNED,
) -> str:
    """Digest of everything that decides a result, and of nothing else.

    With ``settings=MEASURED``, of everything that decides the statistics. The executor is
    in neither: a request that is equal but for it finds the same result.
    """
    content = {"digest": dataset["digest"], "fields": dataset["fields"]}
    return digest_of(
        {"engine": __version__, "base_model": model_digest, "dataset": content}
        | request.model_dump(mode="json", include=set(settings), exclude=NEITHER)
        # What this rule needs is measured for it only.
        | ({"record": "spectra"} if request.allocation.rule == "spectral" else {})
        # What only some may read is found only by who may read it.
        | ({"tenant": tenant} if tenant else {})
    )


@dataclass(frozen=True, slots=True)
class ToFetch:
    """Bytes that a worker downloads before it can measure.

    Attributes:
        model: Of the base model's files, without those that are there already.
        dataset: Of the dataset's files, at most.
    """

    model: int
    dataset: int


class Resolver:
    """Resolves requests against the data folder and the hub.

    Args:
        data_folder: Where registered models and datasets are.
        hub: Gives access to the hub; called when a request names something there.
        tenant: Who this service is to the hub.
    """

    def __init__(
        self, data_folder: DataFolder, hub: "Callable[[], Hub]", *, tenant: str
    ) -> None:
        self.tenant = tenant
        self._data = data_folder
        self._hub = hub
        self._models = LocalModels(data_folder.models)
        self._digests = FolderDigests()
        # Uploads never change, so what was checked once need not be read again.
        self._check_upload = lru_cache(maxsize=1024)(_check_file)

    def resolve(self, request: CalibrationRequest, *, in_detail: bool = False) -> Resolved:
        """Pin a request to content.

        Args:
            request: The request.
            in_detail: Whether to look up the model's sizes and shapes in any case.

        Raises:
            ServiceError: Names what is missing or wrong, and what is allowed.
        """
        model = self._resolve_model(request, in_detail=in_detail)
        check_targets(request, shapes=model.shapes, config=model.config)
        dataset = self._resolve_dataset(request)
        check_chat(model, dataset["fields"])
        references = {"base_model": model.reference, "dataset": dataset}
        is_restricted = any(reference.get("restricted") for reference in references.values())
        tenant = self.tenant if is_restricted else ""
        content: dict[str, Any] = {
            "model_digest": model.digest, "dataset": dataset, "tenant": tenant,
        }  # fmt: skip
        return Resolved(
            references,
            request_digest(request, **content),
            request_digest(request, **content, settings=MEASURED),
            model,
            tenant,
        )

    def bytes_to_fetch(self, request: CalibrationRequest, resolved: Resolved) -> ToFetch:
        """What a worker must download for a request that was resolved in detail."""
        dataset, data = request.dataset, 0
        if isinstance(dataset, HubDataset):
            commit = resolved.references["dataset"]["revision"]
            data = self._hub().dataset_bytes(dataset, commit)
        model = self._hub().missing_bytes(resolved.model) if resolved.model.sizes else 0
        return ToFetch(model, data)

    def _resolve_model(self, request: CalibrationRequest, *, in_detail: bool) -> ResolvedModel:
        model = request.base_model
        if isinstance(model, HubModel):
            wants_shapes = in_detail or isinstance(request.target_modules, list)
            return self._hub().resolve_model(
                model, with_shapes=wants_shapes, with_sizes=in_detail
            )
        return self._models.resolve(model.name)

    def _resolve_dataset(self, request: CalibrationRequest) -> dict[str, Any]:
        dataset, task = request.dataset, request.calibration.task
        with schema_errors():
            match dataset:
                case HubDataset():
                    return self._hub().resolve_dataset(dataset)
                case UploadedDataset():
                    return self._resolve_upload(dataset, task)
                case InlineDataset():
                    return _resolve_inline(dataset, task)
                case LocalDataset():
                    return self._resolve_local(dataset, task)

    def _resolve_upload(self, dataset: UploadedDataset, task: TaskName) -> dict[str, Any]:
        found = find_upload(dataset.id, uploads=self._data.uploads)
        fields = find_fields(found.columns, columns=dataset.columns, task=task)
        file = self._data.uploads / dataset.id / f"data.{found.format}"
        rows = self._check_upload(file, fields)
        return {
            "source": "upload",
            "id": dataset.id,
            "digest": found.digest,
            "fields": asdict(fields),
            "rows": rows,
        }

    def _resolve_local(self, dataset: LocalDataset, task: TaskName) -> dict[str, Any]:
        files = data_files(dataset.name, datasets=self._data.datasets)
        names = list(dict.fromkeys(c for file in files.values() for c in columns_of(file)))
        if not names:
            raise DatasetEmpty(f"local dataset {dataset.name!r} has no rows")
        fields = find_fields(names, columns=dataset.columns, task=task)
        rows = read_rows(list(files.values()), used_columns(fields))
        # The operator's files may be huge: their first rows tell whether the columns fit.
        checked = check_rows(islice(rows, LOCAL_ROWS_CHECKED), fields)
        return {
            "source": "local",
            "name": dataset.name,
            "digest": self._digests.of_files(files),
            "fields": asdict(fields),
            "rows": checked if checked < LOCAL_ROWS_CHECKED else None,
        }


def _resolve_inline(dataset: InlineDataset, task: TaskName) -> dict[str, Any]:
    rows = list(read_inline(dataset.rows))
    fields = find_fields(survey(rows).columns, columns=dataset.columns, task=task)
    check_rows(rows, fields)
    return {
        "source": "inline",
        "digest": digest_of(dataset.rows),
        "fields": asdict(fields),
        "rows": len(rows),
    }


def _check_file(file: Path, fields: TextFields) -> int:
    return check_rows(read_rows([file], used_columns(fields)), fields)


def check_chat(model: ResolvedModel, fields: Mapping[str, Any] | None) -> None:
    """Refuse chat messages for a tokenizer without a chat template.

    Raises:
        DatasetSchema: They cannot be turned into text.
    """
    # The columns of a hub dataset are known to the worker only; rows with a label are no chat.
    if fields and fields["messages"] and not fields["label"] and not model.may_chat():
        raise DatasetSchema(NO_CHAT_TEMPLATE)


@contextmanager
def schema_errors() -> Iterator[None]:
    """Rows that cannot be used are the dataset's fault, and refused as such."""
    try:
        yield
    except (ColumnError, RowError) as error:
        raise DatasetSchema(str(error)) from error
    except OSError as error:
        raise DatasetUnreachable(f"the rows cannot be read: {error.strerror}") from error
