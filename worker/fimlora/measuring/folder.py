"""Measure a model that lies in a folder, whatever its size."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from fimlora.measuring.examples.batches import as_batch, count_examples, count_tokens
from fimlora.measuring.executors import boundary_limit, measure_where_it_fits, parse_executor
from fimlora.measuring.resident import measure
from fimlora.measuring.resume.progress_file import ProgressFile
from fimlora.measuring.settings import check_at_least_one
from fimlora.measuring.streamed.run import measure_streamed
from fimlora.memory.need import SPECTRA_BYTES, bytes_recorded, estimate_need
from fimlora.memory.out_of_memory import is_out_of_memory
from fimlora.model.checkpoint import Checkpoint
from fimlora.model.loading import experts_per_token, load
from fimlora.model.skeleton import build_skeleton
from fimlora.model.targets import find_targets
from fimlora.statistics import Statistics
from fimlora.statistics.options import Executor, parse_record


def measure_folder(
    model_path: str | Path,
    batches: Iterable[Mapping[str, Any]],
    *,
    executor: str = "auto",
    model_class: Any = None,
    config: Any = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    n_batches: int = 8,
    seed: int = 0,
    micro_batch_size: int | None = None,
    **options: Any,
) -> Statistics:
    """Measure the model of a folder in memory if it fits, else block by block.

    Args:
        model_path: A folder as ``save_pretrained`` writes it, with safetensors weights.
        batches: As for `fimlora.measure`; those that are used are all read first.
        executor: ``resident``, ``streamed``, or ``auto``: resident if weights and the
            activations of one example seem to fit, and streamed if they do not after all.
        model_class: As for `fimlora.measure_streamed`.
        config: As for `fimlora.measure_streamed`.
        dtype: As for `fimlora.measure_streamed`.
        device: Where to run.
        n_batches: Batches to use at most.
        seed: As for `fimlora.measure_streamed`.
        micro_batch_size: Examples at once, to begin with; halved when memory runs out.
        **options: Whatever else `fimlora.measure` and `fimlora.measure_streamed` share.

    Returns:
        The statistics; their ``execution`` tells how they were measured.

    Raises:
        OutOfMemory: One example at a time does not fit, not even streamed.
        InvalidOption: An argument is outside what is allowed.
        UnsupportedModule: The model was to be streamed and cannot be.
    """  # noqa: DOC502 - the helpers raise
    check_at_least_one(n_batches=n_batches, micro_batch_size=micro_batch_size)
    kind, on, folder = parse_executor(executor), torch.device(device), Path(model_path)
    items = [as_batch(item) for item in islice(batches, n_batches)]
    built: Any = build_skeleton(folder, model_class=model_class, config=config, dtype=dtype)
    shared = {"n_batches": n_batches, "seed": seed, **options}

    def resident(size: int) -> Statistics:
        with _forgotten_sums(options.get("progress_file"), when=kind is Executor.AUTO):
            model = load(type(built), folder, built.config, built.dtype, seed).to(on)
            return measure(model, items, micro_batch_size=size, **shared)

    def streamed(size: int) -> Statistics:
        with _forgotten_sums(options.get("progress_file"), when=size > 1):
            return measure_streamed(
                folder,
                items,
                model_class=model_class,
                config=config,
                dtype=dtype,
                device=on,
                micro_batch_size=size,
                max_boundary_bytes=boundary_limit(),
                **shared,
            )

    return measure_where_it_fits(
        kind,
        device=on,
        need=estimate_need(
            Checkpoint(folder).tensors,
            itemsize=built.dtype.itemsize,
            n_tokens=max(map(count_tokens, items), default=1),
            experts_per_token=experts_per_token(built.config),
            recorded_bytes=_bytes_recorded(built, **options),
        ),
        largest_batch=micro_batch_size or max(map(count_examples, items), default=1),
        resident=resident,
        streamed=streamed,
    )


def _bytes_recorded(
    model: Any,
    *,
    target_modules: str | Sequence[str] | None = None,
    record: str | Collection[str] = (),
    spectra_bytes: int = SPECTRA_BYTES,
    **others: Any,  # noqa: ARG001 - of no weight here
) -> int:
    """Count what these options of `fimlora.measure` record."""
    if not parse_record(record):
        return 0
    modules, itemsize = find_targets(model, target_modules), model.dtype.itemsize
    return bytes_recorded(modules, record, spectra_bytes=spectra_bytes, itemsize=itemsize)


@contextmanager
def _forgotten_sums(
    progress_file: str | Path | ProgressFile | None, *, when: bool
) -> Iterator[None]:
    """Remove what a run has saved when memory ends it and another way is tried next.

    Sums go on only in the very run that they come from.
    """
    try:
        yield
    except Exception as error:
        file = ProgressFile.of(progress_file)
        if when and file is not None and is_out_of_memory(error):
            Path(file.path).unlink(missing_ok=True)
        raise
