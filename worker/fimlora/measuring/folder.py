"""Measure a model that lies in a folder, whatever its size."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fimlora.measuring.contrast import measure_both
from fimlora.measuring.examples.batches import Batch, as_batch, count_examples, count_tokens
from fimlora.measuring.executors import (
    FreeBytes,
    boundary_limit,
    measure_where_it_fits,
    parse_executor,
)
from fimlora.measuring.resident import measure_resident
from fimlora.measuring.resume.progress_file import ProgressFile
from fimlora.measuring.settings import Settings
from fimlora.measuring.streamed.run import measure_streamed
from fimlora.memory.device import free_bytes
from fimlora.memory.need import MemoryNeed, bytes_recorded, estimate_need
from fimlora.memory.out_of_memory import is_out_of_memory
from fimlora.model.checkpoint import Checkpoint
from fimlora.model.loading import Loaded, experts_per_token, load
from fimlora.model.skeleton import build_skeleton
from fimlora.statistics import Statistics
from fimlora.statistics.options import Executor

_CPU = torch.device("cpu")


def measure_folder(
    model_path: str | Path,
    batches: Iterable[Mapping[str, Any]],
    settings: Settings = Settings(),
    *,
    executor: str = "auto",
    model_class: Any = None,
    config: Any = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    weights_seed: int | None = None,
    ignore_mismatched_sizes: bool = False,
    retain: Iterable[Mapping[str, Any]] | None = None,
) -> Statistics:
    """Measure the model of a folder in memory if it fits, else block by block.

    Args:
        model_path: A folder as ``save_pretrained`` writes it, with safetensors weights.
        batches: As for `fimlora.measure`; those that are used are all read first.
        settings: What to measure; its micro-batch size is the one to begin with.
        executor: ``resident``, ``streamed``, or ``auto``: resident if weights and the
            activations of one example seem to fit, and streamed if they do not after all.
        model_class: As for `fimlora.measure_streamed`.
        config: As for `fimlora.measure_streamed`.
        dtype: As for `fimlora.measure_streamed`.
        device: Where to run.
        weights_seed: As for `fimlora.measure_streamed`.
        ignore_mismatched_sizes: As for `fimlora.measure_streamed`.
        retain: As for `fimlora.measure`.

    Returns:
        The statistics; their ``execution`` tells how they were measured.

    Raises:
        OutOfMemory: One example at a time does not fit, not even streamed.
        InvalidOption: An argument is outside what is allowed.
        UnsupportedModule: The model was to be streamed and cannot be.
    """  # noqa: DOC502 - the helpers raise
    kind = parse_executor(executor)
    model = SavedModel(
        Path(model_path),
        model_class=model_class,
        config=config,
        dtype=dtype,
        device=torch.device(device),
        weights_seed=weights_seed,
        ignore_mismatched_sizes=ignore_mismatched_sizes,
    )

    def run(batches: Iterable[Mapping[str, Any]], settings: Settings) -> Statistics:
        items = [as_batch(item) for item in islice(batches, settings.n_batches)]
        return measure_saved(model, items, settings, executor=kind)

    return (
        run(batches, settings)
        if retain is None
        else measure_both(run, batches, retain, settings)
    )


@dataclass(frozen=True)
class SavedModel:
    """A model in a folder, and how it is to be built.

    Attributes:
        folder: The folder.
        model_class: As for `fimlora.measure_streamed`, as are all that follow.
        config: The model's config, if it is not the folder's own.
        dtype: Dtype to run in.
        device: Where to run.
        weights_seed: Seed of weights that the checkpoint lacks.
        ignore_mismatched_sizes: Whether a head of another shape is drawn anew.
    """

    folder: Path
    model_class: Any = None
    config: Any = None
    dtype: torch.dtype | None = None
    device: torch.device = _CPU
    weights_seed: int | None = None
    ignore_mismatched_sizes: bool = False

    def skeleton(self) -> Any:
        """Build the model without its weights."""
        return build_skeleton(
            self.folder, model_class=self.model_class, config=self.config, dtype=self.dtype
        )

    def load(self, built: nn.Module, seed: int) -> Loaded:
        """Load the model.

        Args:
            built: Its skeleton.
            seed: Seed of weights that the checkpoint lacks, where it has none of its own.

        Returns:
            The model on its device, and what of it was drawn.
        """
        seed = seed if self.weights_seed is None else self.weights_seed
        loaded = load(built, self.folder, seed=seed, redraws=self.ignore_mismatched_sizes)
        return replace(loaded, model=loaded.model.to(self.device))

    def stream(self, batches: Iterable[Batch], settings: Settings) -> Statistics:
        """Measure the model block by block."""
        return measure_streamed(
            self.folder,
            batches,
            settings,
            model_class=self.model_class,
            config=self.config,
            dtype=self.dtype,
            device=self.device,
            max_boundary_bytes=boundary_limit(),
            weights_seed=self.weights_seed,
            ignore_mismatched_sizes=self.ignore_mismatched_sizes,
        )


def measure_saved(
    model: SavedModel,
    batches: list[Batch],
    settings: Settings,
    *,
    executor: Executor,
    free: FreeBytes = free_bytes,
) -> Statistics:
    """Do what `measure_folder` does.

    Args:
        model: The model.
        batches: The batches that are used.
        settings: What to measure.
        executor: Where.
        free: Says how much memory is left.

    Returns:
        The statistics.
    """
    built, file = model.skeleton(), settings.progress_file

    def resident(size: int) -> Statistics:
        with _forgotten_sums(file, when=executor is Executor.AUTO):
            loaded = model.load(built, settings.seed)
            wanted = replace(settings.without(loaded.drawn), micro_batch_size=size)
            return measure_resident(loaded.model, batches, wanted)

    def streamed(size: int) -> Statistics:
        with _forgotten_sums(file, when=size > 1):
            return model.stream(batches, replace(settings, micro_batch_size=size))

    largest = max(map(count_examples, batches), default=1)
    return measure_where_it_fits(
        executor,
        device=model.device,
        need=_estimate(model.folder, built, batches, settings),
        largest_batch=settings.micro_batch_size or largest,
        resident=resident,
        streamed=streamed,
        free=free,
    )


def _estimate(folder: Path, built: Any, batches: list[Batch], settings: Settings) -> MemoryNeed:
    """Estimate what the model and what is recorded of it need in memory."""
    recorded = 0
    if settings.parsed_record:
        recorded = bytes_recorded(
            settings.choose(built).modules,
            settings.record,
            spectra_bytes=settings.spectra_bytes,
            itemsize=built.dtype.itemsize,
            null=settings.null,
            halves=settings.halves,
            n_components=settings.n_components,
        )
    return estimate_need(
        Checkpoint(folder).tensors,
        itemsize=built.dtype.itemsize,
        n_tokens=max(map(count_tokens, batches), default=1),
        experts_per_token=experts_per_token(built.config),
        recorded_bytes=recorded,
        passes=settings.passes,
    )


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
