"""Everything that a base model's files tell against it, before a job for it is queued."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fimlora.model.packed_parts import UnreadablePacking
from fimlora.model.quantised_files import check_quantised, logical_shapes, tensor_reader
from fimlora_jobs.datasets.columns import TextFields
from fimlora_jobs.datasets.folders import sizes_in
from fimlora_jobs.models.code_fields import check_no_code
from fimlora_jobs.models.config_kinds import check_kinds
from fimlora_jobs.models.config_numbers import check_numbers
from fimlora_jobs.models.file_sizes import check_file_sizes
from fimlora_jobs.models.heads import check_head, check_media, check_rows
from fimlora_jobs.models.refusal import ModelRefused
from fimlora_jobs.models.shards import check_number_of_shards, check_shard_names, check_shards
from fimlora_jobs.models.special_files import check_no_special_files
from fimlora_jobs.models.tokenizer_files import check_tokenizer, check_tokenizer_names
from fimlora_jobs.models.weights_fit import check_weights_fit
from fimlora_service.errors import UnsupportedArchitecture
from fimlora_service.resolve.model_files import (
    Shapes,
    read_config_file,
    weight_entries,
)

TASKS = ("causal_lm", "sequence_classification")


def read_model(
    folder: Path, *, where: str
) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Configuration and shapes of the weights of a folder that passes all checks.

    Raises:
        ServiceError: It cannot be calibrated, and the message says why.
    """
    with refused(where):
        check_no_special_files(folder)
        check_file_sizes(sizes_in(folder))
    config = read_config_file(folder / "config.json", where=where)
    names = {path.name for path in folder.iterdir()}
    with refused(where):
        check_number_of_shards([name for name in names if name.endswith(".safetensors")])
        check_quantised(config, names=names)
        check_no_code(config)
        check_numbers(config)
    entries = weight_entries(folder, where=where)
    with refused(where):
        stored = {name: (entry.dtype, entry.shape) for name, entry in entries.items()}
        shapes = logical_shapes(config, stored, tensor_reader(folder))
    check_files(config, names, where=where, shapes=shapes)
    with refused(where):
        check_shards(folder)
        check_tokenizer(folder, config, shapes)
    return config, shapes


def check_files(
    config: Mapping[str, Any],
    names: Collection[str],
    *,
    where: str,
    shapes: Shapes | None,
) -> None:
    """Refuse a model by its configuration, the names of its files and its weights' headers.

    Raises:
        UnsupportedArchitecture: It cannot be calibrated, and the message says why.
    """
    with refused(where):
        check_quantised(config, names=names)
        check_no_code(config)
        check_numbers(config, n_tensors=None if shapes is None else len(shapes))
        check_kinds(config)
        check_shard_names(names)
        check_tokenizer_names(names, config)
        if shapes is not None:
            check_weights_fit(config, shapes)


def check_task(
    config: Mapping[str, Any],
    fields: Mapping[str, Any] | None,
    task: str,
    *,
    is_chat: bool,
    where: str,
    media: Collection[str] = (),
) -> None:
    """Refuse a model without the head that the rows need, and rows that a head cannot use.

    Args:
        config: Its configuration.
        fields: The columns that are used; ``None`` where only the worker will know.
        task: What the request says.
        is_chat: Whether the rows are conversations.
        where: What to call the model.
        media: Kinds of what the rows show besides text.

    Raises:
        UnsupportedArchitecture: It has none.
    """
    with refused(where):
        if media:
            check_media(config, media)
        elif fields is not None:
            columns = TextFields(**fields)
            check_head(config, columns.task)
            if not columns.label:
                check_rows(config, has_completion=bool(columns.completion), is_chat=is_chat)
        elif task in TASKS:
            check_head(config, task)


@contextmanager
def refused(where: str) -> Iterator[None]:
    """Name the model in a refusal.

    Raises:
        UnsupportedArchitecture: There was one.
    """
    try:
        yield
    except (ModelRefused, UnreadablePacking) as error:
        raise UnsupportedArchitecture(f"{where} cannot be calibrated: {error}") from error
