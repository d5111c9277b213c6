"""From references to what measuring needs: the files, the examples, and the model around them."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from fimlora.model.input_limits import InputLimits, input_limits
from fimlora_contract.jobs import Stage
from fimlora_contract.references import DatasetReference, HubDataset
from fimlora_contract.requests import CalibrationRequest
from fimlora_jobs.datasets.columns import (
    ColumnError,
    TaskName,
    TextFields,
    check_retained,
    find_fields,
)
from fimlora_jobs.datasets.labels import Labels
from fimlora_jobs.datasets.rows import RowError
from fimlora_jobs.datasets.table import Rows
from fimlora_jobs.dtypes import choose_dtype
from fimlora_worker.errors import DatasetSchema
from fimlora_worker.inputs.base_model import BaseModel
from fimlora_worker.inputs.calibration_data import (
    Drawn,
    HeadBatches,
    PaddedBatches,
    check_token_ids,
    draw,
)
from fimlora_worker.inputs.chat.assistant_turns import Choice
from fimlora_worker.inputs.chat.encoding import chat_encoder
from fimlora_worker.inputs.device import choose_device
from fimlora_worker.inputs.examples import Encoder, Example
from fimlora_worker.inputs.heads import ModelRequest, head_task
from fimlora_worker.inputs.label_facts import label_facts
from fimlora_worker.inputs.labels import check_declared, check_labels, find_labels
from fimlora_worker.inputs.media.encoding import MediaEncoder
from fimlora_worker.inputs.media.kinds import kinds_shown
from fimlora_worker.inputs.media.processor import load_processor
from fimlora_worker.inputs.models import (
    download_model,
    find_model,
    load_tokenizer,
    longest_input,
    padding_id,
    read_config,
    weight_bytes,
)
from fimlora_worker.inputs.rows import open_rows
from fimlora_worker.job.progress import Reporter
from fimlora_worker.job.worker_process import WorkerProcess

# Rows that are not measured, which a head is fitted on alone.
ENOUGH_ALONE = 32


@dataclass(frozen=True)
class Prepared:
    """Everything that measuring needs, and what provenance says of it.

    Attributes:
        label_facts: Says of examples what provenance does of their labels.
        head_batches: What a new head is fitted on; ``None`` where none is fitted.
        retain_batches: Rows whose function is to be kept, if there are any.
    """

    model: BaseModel
    batches: PaddedBatches
    head_batches: HeadBatches | None
    drawn: Drawn
    fields: TextFields
    label_facts: Callable[[Sequence[Example]], dict[str, Any]]
    retain_batches: PaddedBatches | None = None


def fetch(
    request: CalibrationRequest,
    resolved: dict[str, Any],
    *,
    process: WorkerProcess,
    reporter: Reporter,
) -> tuple[Path, Rows]:
    """The folder of the base model and the rows of the dataset, downloaded if need be."""
    model, digests, settings = resolved["base_model"], process.digests, process.settings
    is_hub = model["source"] == "hub"
    if is_hub or isinstance(request.dataset, HubDataset):
        reporter.enter(Stage.DOWNLOADING)
    folder = download_model(model, settings) if is_hub else find_model(model, settings, digests)
    rows = open_rows(
        request.dataset, resolved["dataset"], settings, digests, alive=reporter.keep_alive
    )
    return folder, rows


def prepare(
    request: CalibrationRequest,
    resolved: dict[str, Any],
    *,
    folder: Path,
    rows: Rows,
    process: WorkerProcess,
    fits_head: bool = True,
    on_example: Callable[[], None] = lambda: None,
) -> Prepared:
    """Draw the examples, and say how the model is wanted; it is not loaded yet.

    A head is fitted only where the request wants it, and the checkpoint lacks it.
    """
    calibration = request.calibration
    base = find_base(request, resolved, folder=folder, rows=rows, process=process)
    model = base.model
    fits_head &= calibration.head == "fitted" and model.has_drawn_head
    n_examples = calibration.most_batches * calibration.batch_size
    with base.encoder(calibration.max_length, calibration.chat_labels) as encoder:
        drawn = draw(
            rows,
            encoder,
            n_examples=n_examples,
            n_further=calibration.head_rows if fits_head else 0,
            seed=calibration.seed,
            on_example=on_example,
        )
        assert encoder.chat
        facts = partial(
            label_facts,
            fields=base.fields,
            chat=encoder.chat,
            labels=base.labels,
            is_pair=base.is_pair,
        )
        retained: Sequence[Example] = ()
        if request.retain is not None:
            retained = draw_retained(
                request, resolved, rows, encoder, process=process, alive=on_example
            )
    examples = [*drawn.examples, *drawn.further, *retained]
    check_token_ids(examples, base.tokenizer, base.limits.n_ids)
    pad_id = model.pad_token_id or 0
    batches = PaddedBatches(drawn.examples, batch_size=calibration.batch_size, pad_id=pad_id)
    for_head = None
    if fits_head:
        for_head = head_batches(
            drawn,
            n_rows=calibration.head_rows,
            batch_size=calibration.batch_size,
            pad_id=pad_id,
        )
    to_retain = PaddedBatches(retained, batch_size=calibration.batch_size, pad_id=pad_id)
    return Prepared(
        model, batches, for_head, drawn, base.fields, facts, to_retain if retained else None
    )


def draw_retained(
    request: CalibrationRequest,
    resolved: dict[str, Any],
    beside: Rows,
    encoder: Encoder,
    *,
    process: WorkerProcess,
    alive: Callable[[], None],
) -> Sequence[Example]:
    """Draw the rows to retain, read as those beside them are, whose classes they have.

    Raises:
        DatasetSchema: They carry something else, or have a class that the dataset has not.
    """
    assert request.retain is not None, "asked for without rows to retain"
    calibration, known = request.calibration, resolved["retain"]
    rows = open_rows(request.retain, known, process.settings, process.digests, alive=alive)
    try:
        fields = columns_of(request.retain, known, rows, calibration.task)
        check_retained(encoder.fields, fields)
        if encoder.labels and fields.label:
            declared = beside.classes.get(encoder.fields.label or "")
            check_declared(declared, rows.classes.get(fields.label))
            check_labels(encoder.labels, rows.scan(fields.label))
    except (ColumnError, RowError) as error:
        raise DatasetSchema(f"retain: {error}") from error
    media = encoder.media and replace(encoder.media, beside=rows.beside)
    return draw(
        rows,
        replace(encoder, fields=fields, media=media),
        n_examples=calibration.most_batches * calibration.batch_size,
        seed=calibration.seed,
        on_example=alive,
    ).examples


def head_batches(drawn: Drawn, *, n_rows: int, batch_size: int, pad_id: int = 0) -> HeadBatches:
    """What the head is fitted on: rows that are not measured, where there are enough of them.

    A head that has seen the labels it is measured with makes them look as if they followed from
    their rows, even labels that were drawn at random.

    Args:
        drawn: Rows to be measured, and others.
        n_rows: The most to fit it on.
        batch_size: Examples per batch.
        pad_id: Token that fills up ``input_ids``.

    Returns:
        Others alone, where there are as many as are measured or `ENOUGH_ALONE`; else also those
        that are measured last, which rounds may never come to.
    """
    further = drawn.further[:n_rows]
    is_enough = len(further) >= min(len(drawn.examples), n_rows, ENOUGH_ALONE)
    n_missing = 0 if is_enough else min(n_rows - len(further), len(drawn.examples))
    measured = drawn.examples[len(drawn.examples) - n_missing :]
    return HeadBatches(further, measured, batch_size=batch_size, pad_id=pad_id)


@dataclass(frozen=True)
class Base:
    """The base model as it is wanted, and what makes examples for it.

    Attributes:
        processor: Of a model that is shown more than text; else ``None``.
        beside: Folder of the rows, if files in it may be named.
    """

    model: BaseModel
    tokenizer: Any
    limits: InputLimits
    fields: TextFields
    labels: Labels | None
    processor: Any = None
    beside: Path | None = None

    @property
    def is_pair(self) -> bool:
        """Whether an encoder reads the prompt, and a decoder the completion."""
        return self.model.request.task == "seq2seq_lm"

    @contextmanager
    def encoder(self, max_length: int, chat_labels: Choice) -> Iterator[Encoder]:
        """An encoder of rows; what it starts ends with the block."""
        tokenizer, config = self.tokenizer, self.model.config
        longest = longest_input(max_length, tokenizer, config, self.limits.n_positions)
        media = None
        if self.processor is not None:
            media = MediaEncoder(self.processor, longest, self.beside)
        with chat_encoder(tokenizer, chat_labels) as chat:
            yield Encoder(
                tokenizer, self.fields, longest, self.labels, chat, media, is_pair=self.is_pair
            )


def find_base(
    request: CalibrationRequest,
    resolved: dict[str, Any],
    *,
    folder: Path,
    rows: Rows,
    process: WorkerProcess,
) -> Base:
    """Say how the model is wanted for some rows; it is not loaded yet."""
    digest = resolved["base_model"]["digest"]
    fields = find_columns(request, resolved, rows)
    labels = find_labels(rows, fields.label, request.calibration.task) if fields.label else None
    weight_bytes(folder)  # or there are none that could be loaded
    config, tokenizer = process.readers.get(
        digest, size=1, load=lambda: (read_config(folder), load_tokenizer(folder))
    )
    media = resolved["dataset"].get("media") or kinds_shown(rows, fields)
    processor = None
    if media:
        processor = load_processor(folder, config)
        tokenizer = processor.tokenizer
    wanted = _model_request(
        request, config, fields, labels, media, digest=digest, process=process
    )
    limits = input_limits(BaseModel(folder, config, wanted, None, process.models).outline())
    pad_id = padding_id(tokenizer, limits.n_ids)
    whole = None if request.modules_to_save is None else tuple(request.modules_to_save)
    model = BaseModel(folder, config, wanted, pad_id, process.models, whole)
    return Base(model, tokenizer, limits, fields, labels, processor, rows.beside)


def find_columns(
    request: CalibrationRequest, resolved: dict[str, Any], rows: Rows
) -> TextFields:
    """The columns of the rows to learn from."""
    return columns_of(request.dataset, resolved["dataset"], rows, request.calibration.task)


def columns_of(
    dataset: DatasetReference, resolved: dict[str, Any], rows: Rows, task: TaskName
) -> TextFields:
    """The columns that the service has found, or else what a look at them tells."""
    if known := resolved.get("fields"):
        return TextFields(**known)
    return find_fields(rows.names, columns=dataset.columns, task=task)


def _model_request(
    request: CalibrationRequest,
    config: Any,
    fields: TextFields,
    labels: Labels | None,
    media: Collection[str],
    *,
    digest: str,
    process: WorkerProcess,
) -> ModelRequest:
    settings = process.settings
    device = choose_device(
        settings.device, lock=process.device_lock, visible=settings.cuda_visible_devices
    )
    own = getattr(config, "dtype", None)
    return ModelRequest(
        digest=digest,
        task=head_task(config, fields, media),
        dtype=choose_dtype(request.calibration.dtype, own, device=device),
        device=device,
        n_outputs=labels.n_outputs if labels else None,
        problem_type=labels.problem_type if labels else None,
    )
