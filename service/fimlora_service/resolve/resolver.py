"""From names to content, before anything is queued: the first of the three stages.

Whatever can be known without a device is checked here, so that a wrong request is refused
in the answer to it and not minutes later in a job.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fimlora_contract.references import DatasetReference, HubDataset, HubModel
from fimlora_contract.requests import CalibrationRequest
from fimlora_contract.row_formats import row_format
from fimlora_jobs.allow_lists import EVERYTHING, Allowed
from fimlora_jobs.data_folder import DataFolder
from fimlora_jobs.datasets.columns import ColumnError, TaskName, TextFields, check_retained
from fimlora_jobs.datasets.kept_digests import KeptDigests
from fimlora_jobs.datasets.rows import RowError
from fimlora_service.errors import DatasetSchema, DatasetUnreachable
from fimlora_service.keys.principal import EVERYBODY, Principal
from fimlora_service.resolve.exclusion_checks import check_exclusions
from fimlora_service.resolve.expert_checks import check_fused_experts
from fimlora_service.resolve.local_datasets import LocalDatasets
from fimlora_service.resolve.local_models import LocalModels
from fimlora_service.resolve.model_checks import check_task
from fimlora_service.resolve.model_files import ResolvedModel
from fimlora_service.resolve.request_digest import MEASURED, request_digest
from fimlora_service.resolve.saved_checks import check_saved
from fimlora_service.resolve.target_checks import check_targets
from fimlora_service.resolve.tenants import salt_of
from fimlora_service.resolve.tie_checks import check_ties
from fimlora_service.resolve.token_limit import check_tokens
from fimlora_service.resolve.trained_adapters import ResolvedAdapter, TrainedAdapters

if TYPE_CHECKING:  # it brings the hub's library along, which not every request needs
    from fimlora_service.resolve.hub import Hub


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a request means, by content.

    Attributes:
        references: What goes on the job's record as ``resolved``.
        digest: Key of the result cache: equal for requests that must give equal results.
        statistics_digest: Key of the statistics: equal for requests that measure the same.
        model: The base model.
        tenant: Who may find the result by its inputs; empty for everybody.
        adapter_ranks: Ranks of the trained adapter that is measured at, by module.
    """

    references: dict[str, Any]
    digest: str
    statistics_digest: str
    model: ResolvedModel
    tenant: str = ""
    adapter_ranks: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ToFetch:
    """Bytes that a worker downloads before it can measure.

    Attributes:
        model: Of the base model's files, without those that are there already.
        dataset: Of the files of the dataset, and of those to retain and held out, at most.
    """

    model: int
    dataset: int


class Resolver:
    """Resolves requests against the data folder and the hub.

    Args:
        data_folder: Where registered models and datasets are.
        hub: Gives access to the hub; called when a request names something there.
        tenant: Who this service is to the hub.
        allowed: What the operator lets be used.
        max_tokens: What a request may send through a model; 0 for no limit.
    """

    def __init__(
        self,
        data_folder: DataFolder,
        hub: "Callable[[], Hub]",
        *,
        tenant: str,
        allowed: Allowed = EVERYTHING,
        max_tokens: int = 0,
    ) -> None:
        self._tenant = tenant
        self._for = EVERYBODY
        self.allowed = allowed
        self._max_tokens = max_tokens
        self._hub = hub
        self._models = LocalModels(data_folder.models, KeptDigests(data_folder.digests))
        self._datasets = LocalDatasets(data_folder)
        self._adapters = TrainedAdapters(data_folder)

    def of(self, principal: Principal) -> "Resolver":
        """The same for somebody: uploads of other tenants are not there."""
        seen = copy.copy(self)  # what is known of files serves all
        seen._for = principal  # noqa: SLF001
        return seen

    def salt(self, *, is_restricted: bool) -> str:
        """Who may find by its inputs what is made; empty for everybody."""
        return salt_of(self._for.tenant, self._tenant if is_restricted else "")

    def resolve(self, request: CalibrationRequest) -> Resolved:
        """Pin a request to content.

        Raises:
            ServiceError: Names what is missing or wrong, and what is allowed.
        """
        check_tokens(request, most=self._max_tokens)
        model = self._resolve_model(request)
        check_targets(request, shapes=model.shapes, config=model.config)
        check_fused_experts(request, shapes=model.shapes)
        check_ties(request, shapes=model.shapes, config=model.config)
        check_exclusions(request, shapes=model.shapes, config=model.config)
        check_saved(request, shapes=model.shapes, config=model.config)
        dataset = self.resolve_dataset(request.dataset, task=request.calibration.task)
        retain = self._resolve_retain(request, dataset)
        for rows in filter(None, (dataset, retain)):
            _check_rows(rows, model, request.calibration.task)
        references = {"base_model": model.reference, "dataset": dataset}
        references |= {"retain": retain} if retain else {}
        point = self._resolve_point(request, model)
        references |= {"adapter": point.reference} if point else {}
        is_restricted = any(reference.get("restricted") for reference in references.values())
        tenant = self.salt(is_restricted=is_restricted)
        content: dict[str, Any] = {
            "model_digest": model.digest, "dataset": dataset, "retain": retain, "tenant": tenant,
            "adapter": point.reference if point else None, "called": model.called,
        }  # fmt: skip
        return Resolved(
            references,
            request_digest(request, **content),
            request_digest(request, **content, settings=MEASURED),
            model,
            tenant,
            point.ranks if point else {},
        )

    def bytes_to_fetch(self, request: CalibrationRequest, resolved: Resolved) -> ToFetch:
        """What a worker must download for a request."""
        named = {
            "dataset": request.dataset, "retain": request.retain, "held_out": request.held_out
        }  # fmt: skip
        # Of two splits of one repository, its files are fetched once.
        repositories = {
            (dataset.id, resolved.references[role]["revision"]): dataset
            for role, dataset in named.items()
            if isinstance(dataset, HubDataset)
        }
        data = sum(
            self._hub().dataset_bytes(dataset, commit)
            for (_, commit), dataset in repositories.items()
        )
        model = self._hub().missing_bytes(resolved.model) if resolved.model.sizes else 0
        return ToFetch(model, data)

    def _resolve_model(self, request: CalibrationRequest) -> ResolvedModel:
        model = request.base_model
        self.allowed.check_model(model.model_dump())
        if isinstance(model, HubModel):
            return self._hub().resolve_model(model)
        return self._models.resolve(model.name)

    def _resolve_point(
        self, request: CalibrationRequest, model: ResolvedModel
    ) -> ResolvedAdapter | None:
        """Pin the adapter that is measured at to content, if there is one.

        Raises:
            ServiceError: It is not there, or cannot be one for this model.
        """
        name = request.calibration.adapter
        if not name:
            return None
        return self._adapters.resolve(name, shapes=model.shapes, principal=self._for)

    def _resolve_retain(
        self, request: CalibrationRequest, dataset: dict[str, Any]
    ) -> dict[str, Any] | None:
        """Pin the rows to retain to content, if there are any.

        Raises:
            ServiceError: They are those of the dataset, or of another kind.
        """
        if request.retain is None:
            return None
        retain = self.resolve_dataset(request.retain, task=request.calibration.task)
        if retain["digest"] == dataset["digest"] and retain["fields"] == dataset["fields"]:
            raise DatasetSchema(
                "the rows to retain are those of the dataset, so that nothing tells them apart; "
                "give another dataset as retain"
            )
        if dataset["fields"] and retain["fields"]:  # or they are known once it is loaded
            with schema_errors():
                check_retained(TextFields(**dataset["fields"]), TextFields(**retain["fields"]))
        return retain

    def resolve_dataset(self, dataset: DatasetReference, *, task: TaskName) -> dict[str, Any]:
        """Pin a dataset to content, and look at its first rows where they are here.

        Raises:
            ServiceError: It is not there, or its rows cannot be used for the task.
        """
        self.allowed.check_dataset(dataset.model_dump(exclude={"rows"}))
        with schema_errors():
            if isinstance(dataset, HubDataset):
                found = self._hub().resolve_dataset(dataset, task=task)
            else:
                found = self._datasets.resolve(dataset, task=task, principal=self._for)
        return found | ({"read_as": row_format(found["fields"])} if found["fields"] else {})


def _check_rows(rows: dict[str, Any], model: ResolvedModel, task: TaskName) -> None:
    """See that a model can learn from rows of their kind."""
    fields, is_chat = rows["fields"], rows["chat"]
    check_task(
        model.config,
        fields,
        task,
        is_chat=is_chat,
        where="the base model",
        media=rows.get("media", ()),
    )
    if is_chat and not rows.get("media"):  # else the processor may have a template of its own
        model.chat_templates().check(may_have_tools=fields is None or bool(fields["tools"]))


@contextmanager
def schema_errors() -> Iterator[None]:
    """Rows that cannot be used are the dataset's fault, and refused as such."""
    try:
        yield
    except ColumnError as error:
        raise DatasetSchema(str(error)) from error
    except RowError as error:
        raise DatasetSchema(str(error), next_step=error.next_step) from error
    except OSError as error:
        raise DatasetUnreachable(f"the rows cannot be read: {error.strerror}") from error
