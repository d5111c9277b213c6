"""Hub references: from a name to a commit, and the little that must be known beforehand.

Nothing heavy is fetched here; the worker downloads weights and rows at that commit.
"""

from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path, PurePath
from typing import Any

import httpx2
from huggingface_hub import DatasetInfo, HfApi, ModelInfo, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    NotASafetensorsRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
)
from huggingface_hub.utils.tqdm import disable_progress_bars

from fimlora.model.packed_parts import Stored
from fimlora.model.quantised_files import is_guessed, logical_shapes
from fimlora.model.safetensors_header import sound_shape
from fimlora_contract.digests import digest_of
from fimlora_contract.references import HubDataset, HubModel
from fimlora_jobs.datasets.columns import TaskName
from fimlora_jobs.datasets.folders import is_wanted
from fimlora_jobs.models.file_sizes import check_file_sizes
from fimlora_jobs.models.shards import check_number_of_shards
from fimlora_jobs.models.tokenizer_content import MAX_BYTES
from fimlora_jobs.models.tokenizer_files import check_tokenizer, files_looked_at
from fimlora_service.errors import (
    DatasetUnreachable,
    HubUnreachable,
    ModelGated,
    ModelNotFound,
    ServiceError,
    UnsafeWeights,
    UnsupportedArchitecture,
)
from fimlora_service.resolve.chat_templates import ChatTemplates, read_templates
from fimlora_service.resolve.dataset_cards import card_has_chat
from fimlora_service.resolve.hub_answers import bound_answers, check_info, readable
from fimlora_service.resolve.model_checks import check_files, refused
from fimlora_service.resolve.model_files import (
    ResolvedModel,
    Shapes,
    describe_config,
    read_config_file,
)

N_HEADS_AT_ONCE = 8
MAX_MODELS = 16
NO_DATA = frozenset({".md", ".py", ".gitattributes", ".gitignore", ""})


class Hub:
    """The model hub as far as the service asks it.

    Args:
        endpoint: Its address.
        token: Access token; without one only public repositories can be read.
        cache: Where small files are kept; the worker uses the same folder.
        timeout_s: How long one question may take.
    """

    def __init__(
        self, *, endpoint: str, token: str | None, cache: Path, timeout_s: float
    ) -> None:
        disable_progress_bars()
        bound_answers()
        self._api = HfApi(endpoint=endpoint, token=token or False, library_name="fimlora")
        self._cache = cache
        self._timeout_s = timeout_s
        # One for all requests: a head may be some megabytes, and its parts some hundred.
        self._pool = ThreadPoolExecutor(N_HEADS_AT_ONCE)
        # A commit never changes.
        self._weights = lru_cache(maxsize=MAX_MODELS)(self._read_weights)

    def resolve_model(self, model: HubModel) -> ResolvedModel:
        """Pin a model to its commit and check that it can be used.

        Of its weights the heads are read, of its tokenizer the files that are no larger than
        what is looked at; both once for each commit.

        Raises:
            ServiceError: The model is missing, gated, unsafe or unusable, or the hub is away.
        """
        where = f"hub model {model.id!r} at revision {model.revision!r}"
        with refusals(where, missing=ModelNotFound, gated=ModelGated):
            info = self._model_info(model, where=where)
            commit, sizes = str(info.sha), sizes_of(info)
            files = [sibling.rfilename for sibling in info.siblings or []]
            heads = [f for f in files if f.endswith(".safetensors") and is_wanted(f)]
            if not heads:
                weights = sorted(f for f in files if f.endswith((".bin", ".pt", ".gguf")))
                raise UnsafeWeights(f"{where} has no *.safetensors file; it has {weights}")
            with refused(where):
                check_file_sizes(sizes)
                check_number_of_shards(heads)
            config = self._read_config(model.id, commit, where=where)
            check_files(config, files, where=where, shapes=None)
            tensors = self._weights(model.id, commit, tuple(heads))
            with refused(where):
                shapes = logical_shapes(config, tensors, None)
            if not is_guessed(config):
                check_files(config, files, where=where, shapes=shapes)
            self._check_tokenizer(model.id, commit, sizes, config, shapes, where=where)
        reference: dict[str, Any] = {
            "source": "hub",
            "id": model.id,
            "revision": commit,
            "digest": digest_of({"model": model.id, "commit": commit}),
        }
        reference |= describe_config(config) | restriction(info)
        templates = partial(self._templates, model.id, commit, files, where=where)
        return ResolvedModel(reference, config, shapes, sizes, chat_templates=templates)

    def missing_bytes(self, model: ResolvedModel) -> int:
        """Bytes of a resolved model that no worker over this cache has fetched yet."""
        sizes = model.sizes
        known = {"repo_id": model.reference["id"], "revision": model.reference["revision"]}
        return sum(
            size
            for name, size in sizes.items()
            if not try_to_load_from_cache(
                filename=name, cache_dir=self._cache / "models", **known
            )
        )

    def dataset_bytes(self, dataset: HubDataset, commit: str) -> int:
        """Bytes of a dataset's files; one configuration or split may need fewer."""
        where = f"hub dataset {dataset.id!r} at commit {commit}"
        with refusals(where, missing=DatasetUnreachable, gated=DatasetUnreachable):
            info = self._dataset_info(dataset.id, commit, where=where, files_metadata=True)
        files = info.siblings or []
        return sum(f.size or 0 for f in files if PurePath(f.rfilename).suffix not in NO_DATA)

    def resolve_dataset(self, dataset: HubDataset, *, task: TaskName) -> dict[str, Any]:
        """Pin a dataset to its commit; what its card does not tell is known once it is loaded.

        Raises:
            ServiceError: It is not there, or the hub is away.
            ColumnError: By its card, its columns cannot be used for the task.
        """
        where = f"hub dataset {dataset.id!r} at revision {dataset.revision!r}"
        with refusals(where, missing=DatasetUnreachable, gated=DatasetUnreachable):
            info = self._dataset_info(dataset.id, dataset.revision, where=where)
        check_data(dataset.id, [sibling.rfilename for sibling in info.siblings or []])
        content = {
            "dataset": dataset.id,
            "commit": info.sha,
            "config": dataset.config,
            "split": dataset.split,
            "columns": dataset.columns.model_dump(),
        }
        return {
            "source": "hub",
            "id": dataset.id,
            "revision": info.sha,
            "digest": digest_of(content),
            "fields": None,
            "rows": None,
            "chat": card_has_chat(info.card_data, dataset, task=task),
        } | restriction(info)

    def _model_info(self, model: HubModel, *, where: str) -> ModelInfo:
        with readable(where):
            info = self._api.model_info(
                model.id, revision=model.revision, timeout=self._timeout_s, files_metadata=True
            )
        check_info(info, where=where)
        return info

    def _dataset_info(
        self, id_: str, revision: str, *, where: str, files_metadata: bool = False
    ) -> DatasetInfo:
        with readable(where):
            info = self._api.dataset_info(
                id_, revision=revision, timeout=self._timeout_s, files_metadata=files_metadata
            )
        check_info(info, where=where)
        return info

    def _read_config(self, id_: str, commit: str, *, where: str) -> dict[str, Any]:
        try:
            path = self._fetch(id_, "config.json", commit)
        except LocalEntryNotFoundError:
            raise  # the hub went away in between
        except EntryNotFoundError as error:
            raise UnsupportedArchitecture(f"{where} has no config.json") from error
        return read_config_file(path, where=where)

    def _templates(
        self, id_: str, commit: str, files: Collection[str], *, where: str
    ) -> ChatTemplates:
        with refusals(where, missing=ModelNotFound, gated=ModelGated):
            return read_templates(files, read=lambda name: self._fetch(id_, name, commit))

    def _fetch(self, id_: str, name: str, commit: str) -> Path:
        """A small file, kept here for the next time."""
        with readable(f"file {name!r} of {id_!r}"):
            path = self._api.hf_hub_download(
                id_, name, revision=commit, cache_dir=self._cache, etag_timeout=self._timeout_s
            )
        return Path(path)

    def _check_tokenizer(
        self,
        id_: str,
        commit: str,
        sizes: Mapping[str, int],
        config: Mapping[str, Any],
        shapes: Shapes,
        *,
        where: str,
    ) -> None:
        """Look at a tokenizer's files as at those of a registered model."""
        wanted = [name for name in files_looked_at(sizes) if sizes[name] <= MAX_BYTES]
        folders = {self._fetch(id_, name, commit).parent for name in wanted}
        with refused(where):
            for folder in folders:
                check_tokenizer(folder, config, shapes)

    def _read_weights(
        self, id_: str, commit: str, files: tuple[str, ...]
    ) -> Mapping[str, Stored]:
        """Dtype and shape of each tensor by name."""

        def read(name: str) -> Any:
            with readable(f"file {name!r} of {id_!r}"):
                return self._api.parse_safetensors_file_metadata(
                    id_, name, revision=commit, timeout=self._timeout_s
                )

        heads = list(self._pool.map(read, files))
        tensors = {name: t for head in heads for name, t in head.tensors.items()}
        try:
            return {
                name: (str(tensor.dtype), sound_shape(tensor.shape))
                for name, tensor in tensors.items()
            }
        except ValueError as error:
            raise UnsafeWeights(f"a safetensors file of {id_!r} states {error}") from error


def check_data(id_: str, files: Collection[str]) -> None:
    """Refuse a dataset that no files but only code could give.

    Raises:
        DatasetUnreachable: It has a loading script, which is named like the repository and
            stands in the way of its files, or no data.
    """
    script = f"{id_.partition('/')[2]}.py"
    if script in files:
        raise DatasetUnreachable(
            f"hub dataset {id_!r} brings a loading script ({script}), which is never run; upload "
            "its rows as Parquet, JSONL or CSV, or name a copy without a script"
        )
    if all(PurePath(name).suffix in NO_DATA for name in files):
        raise DatasetUnreachable(
            f"hub dataset {id_!r} has no data files; it has {sorted(files)[:20]}"
        )


def restriction(info: ModelInfo | DatasetInfo) -> dict[str, bool]:
    """What a reference says of a repository that not everybody may read."""
    return {"restricted": True} if info.private or info.gated else {}


def sizes_of(info: ModelInfo) -> dict[str, int]:
    """Bytes of the files that a worker fetches."""
    files = info.siblings or []
    return {f.rfilename: f.size or 0 for f in files if is_wanted(f.rfilename)}


@contextmanager
def refusals(
    where: str, *, missing: type[ServiceError], gated: type[ServiceError]
) -> Iterator[None]:
    """Turn the hub library's errors into ours; the order goes from narrow to wide."""
    try:
        yield
    except GatedRepoError as error:
        raise gated(f"access to {where} is restricted") from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise missing(f"the hub has no such repository or revision: {where}") from error
    except (NotASafetensorsRepoError, SafetensorsParsingError) as error:
        raise UnsafeWeights(f"the safetensors files of {where} cannot be read") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in {401, 403}:
            raise gated(f"the hub refuses access to {where} with status {status}") from error
        raise HubUnreachable(f"the hub answers {status} for {where}") from error
    except (httpx2.HTTPError, LocalEntryNotFoundError, ConnectionError) as error:
        raise HubUnreachable(f"the hub cannot be reached for {where}") from error
