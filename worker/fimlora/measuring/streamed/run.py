"""Measure a model that does not fit: one block in memory at a time, all batches through it.

Each block is read at most twice, and an embedding or output head as often as a pass uses it,
whatever the number of batches; `fimlora.measuring.streamed.schedule` says how.
"""

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fimlora.errors import EmptyCalibration, InvalidOption
from fimlora.measuring.examples.batches import Batch, as_batch
from fimlora.measuring.examples.examples import Examples, labelled_examples
from fimlora.measuring.examples.losses import Loss, LossFn, choose_loss
from fimlora.measuring.recording.mean_gradient import Signs
from fimlora.measuring.recording.recorder import Recorder
from fimlora.measuring.resident import new_recorder
from fimlora.measuring.resume.fingerprints import digest_batch
from fimlora.measuring.resume.progress_file import ProgressFile, open_progress
from fimlora.measuring.settings import OnBatch, Settings, check_record
from fimlora.measuring.streamed.block_weights import Weights
from fimlora.measuring.streamed.blocks import find_units
from fimlora.measuring.streamed.boundary_store import boundary_store
from fimlora.measuring.streamed.paused_forward import casting_as_one_graph, stops
from fimlora.measuring.streamed.schedule import NewRecorder, Sweep
from fimlora.memory.device import peak_bytes
from fimlora.memory.need import SKETCH_WIDTH, SPECTRA_BYTES, gradients_fit
from fimlora.model.checkpoint import Checkpoint
from fimlora.model.preserved import frozen
from fimlora.model.skeleton import build_skeleton
from fimlora.model.targets import count_base_parameters, find_left_out, find_targets
from fimlora.plan import TargetModule
from fimlora.statistics import Statistics
from fimlora.statistics.options import Execution, Executor
from fimlora.statistics.statistics import Groups


def measure_streamed(
    model_path: str | Path,
    batches: Iterable[Mapping[str, Any]],
    *,
    model_class: Any = None,
    config: Any = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    target_modules: str | Sequence[str] | None = None,
    n_batches: int = 8,
    estimator: str = "exact",
    rank: int = 8,
    seed: int = 0,
    scale: int | float = 2,
    record: str | Collection[str] = (),
    spectra_bytes: int = SPECTRA_BYTES,
    micro_batch_size: int | None = None,
    max_boundary_bytes: int | None = None,
    boundary_folder: str | Path | None = None,
    train_mode: bool = False,
    weights_seed: int | None = None,
    ignore_mismatched_sizes: bool = False,
    loss_fn: LossFn | None = None,
    on_batch: OnBatch | None = None,
    progress_file: str | Path | ProgressFile | None = None,
) -> Statistics:
    """Do what `fimlora.measure` does with a model of any size, from its folder.

    The statistics are those of the resident model to the last bit, on the same device and
    in the same dtype, if its weights begin in memory where torch would put them. Those that
    ``from_pretrained`` reads may not, and a matrix kernel may round otherwise there;
    `fimlora.model.loading.align` moves them.

    Memory holds two blocks, the embedding or the output head while they run, the inputs of
    all blocks up to ``max_boundary_bytes``, and what one micro-batch needs inside one block.

    Args:
        model_path: A folder as ``save_pretrained`` writes it, with safetensors weights.
        batches: As for `fimlora.measure`; they are all read before the first one runs.
        model_class: A model class or auto class of transformers, such as
            ``AutoModelForSequenceClassification``; ``None`` for the one the config names.
        config: The model's config, if it is not the folder's own (another ``num_labels``).
        dtype: Dtype to run in; ``None`` for the config's. Half precision is slow on a CPU
            without units for it.
        device: Where blocks compute.
        target_modules: As for `fimlora.measure`.
        n_batches: As for `fimlora.measure`.
        estimator: As for `fimlora.measure`.
        rank: As for `fimlora.measure`.
        seed: As for `fimlora.measure`.
        scale: As for `fimlora.measure`.
        record: As for `fimlora.measure`.
        spectra_bytes: As for `fimlora.measure`, where it is compared with the gradients of
            all modules; but only those of one block are in memory at once.
        micro_batch_size: As for `fimlora.measure`.
        max_boundary_bytes: How much of the blocks' inputs may stay in host memory; the
            rest goes to disk. ``None`` for all.
        boundary_folder: Where on disk; ``None`` for the system's temporary folder.
        train_mode: Must be off; a resident model would draw its dropout batch after batch,
            not block after block, and the statistics would differ.
        weights_seed: Seed of weights that the checkpoint lacks (a fresh head), which are
            those of ``from_pretrained`` after ``torch.manual_seed``; ``None`` for ``seed``.
        ignore_mismatched_sizes: As for ``from_pretrained``: a head whose shape in the
            checkpoint is another is drawn anew.
        loss_fn: As for `fimlora.measure`.
        on_batch: Called with (batches done, batches expected) after each block. All batches
            advance together, so "done" is the share of the work; numbers may repeat.
        progress_file: As for `fimlora.measure`, but saved after blocks on the way back. A run
            that goes on from it runs forward once more, up to the blocks that are done.

    Returns:
        The statistics of the batches that were used.

    Raises:
        EmptyCalibration: There is no batch, or no example with a label.
        InvalidOption: An argument is outside what is allowed.
        InvalidCheckpoint: The weights cannot be read, or do not fit the model.
        InvalidProgress: The progress file is damaged, or comes from another run.
        UnsupportedModule: The model cannot be cut into blocks that run one by one.
    """  # noqa: DOC502 - the helpers raise
    settings = Settings.checked(
        estimator=estimator, rank=rank, seed=seed, scale=scale, record=record,
        spectra_bytes=spectra_bytes, n_batches=n_batches, micro_batch_size=micro_batch_size,
        train_mode=train_mode,
    )  # fmt: skip
    if train_mode:
        raise InvalidOption(
            "train_mode=True cannot be streamed, as dropout would be drawn in another order "
            "than resident; measure it resident, or without dropout"
        )
    folder, on = Path(model_path), torch.device(device)
    checkpoint = Checkpoint(folder)
    model = build_skeleton(folder, model_class=model_class, config=config, dtype=dtype)
    check_record(settings.record, model)
    modules = find_targets(model, target_modules)
    n_parameters = count_base_parameters(model)
    units = find_units(model, modules)
    weights = Weights(model, checkpoint, units, on, redraws=ignore_mismatched_sizes)
    spill = Path(boundary_folder) if boundary_folder is not None else None
    identity = {
        **settings.identity(Executor.STREAMED),
        "weights_seed": weights_seed,
        "ignore_mismatched_sizes": ignore_mismatched_sizes,
    }
    saved = open_progress(
        progress_file, model, modules, identity, loss_fn, checkpoint=checkpoint, devices=[on]
    )
    with (
        weights.attached(seed=seed if weights_seed is None else weights_seed),
        frozen(model, train_mode=False, seed=seed),
        boundary_store(max_boundary_bytes, spill) as store,
        stops(units),
        casting_as_one_graph(),
    ):
        items = [as_batch(item) for item in itertools.islice(batches, n_batches)]
        if saved is not None:
            digests = {
                f"batch {i}": digest_batch(item).hex() for i, item in enumerate(items, 1)
            }
            saved.expect(digests)
        loss, found = _read(items, model, loss_fn, on)
        sweep = Sweep(
            model,
            modules,
            units,
            weights,
            store,
            loss,
            on,
            on_batch,
            found,
            _recorders_of_units(settings, modules, on),
            saved,
        )
        groups = _join(modules, sweep.measure(micro_batch_size))
    return Statistics(
        modules=modules,
        n_examples=sum(len(examples) for examples in found),
        n_batches=sum(len(examples) > 0 for examples in found),
        base_parameters=n_parameters,
        loss=loss.kind.value,
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        not_targeted=find_left_out(model, target_modules),
        execution=Execution(Executor.STREAMED, sweep.largest, peak_bytes(on)),
        **(settings.provenance() | groups),
    )


def _read(
    items: Sequence[Batch],
    model: nn.Module,
    loss_fn: LossFn | None,
    device: torch.device,
) -> tuple[Loss, list[Examples]]:
    """Find out the loss from the first batch, and the labelled examples of all."""
    if not items:
        raise EmptyCalibration("the loader gave no batch")
    loss = choose_loss(model, items[0], loss_fn)
    found = [labelled_examples(item, loss, device) for item in items]
    if not any(len(examples) for examples in found):
        raise EmptyCalibration("no example carries a label")
    return loss, found


def _recorders_of_units(
    settings: Settings, modules: Sequence[TargetModule], device: torch.device
) -> NewRecorder:
    """Decide once, for all modules, whether gradients are sketched; share the signs."""
    signs = Signs(SKETCH_WIDTH)
    fits = gradients_fit(modules, settings.spectra_bytes)
    n_bytes = settings.spectra_bytes if fits else 0

    def new(targets: Sequence[TargetModule]) -> Recorder:
        return new_recorder(settings, targets, device, spectra_bytes=n_bytes, signs=signs)

    return new


def _join(modules: Sequence[TargetModule], parts: Sequence[Groups]) -> Groups:
    """Join what was recorded in the units, in the model's order."""
    joined: Groups = {}
    for group in parts[0]:
        by_name = {name: value for part in parts for name, value in part[group].items()}
        joined[group] = {m.name: by_name[m.name] for m in modules if m.name in by_name}
    return joined
