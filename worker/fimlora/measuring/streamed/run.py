"""Measure a model that does not fit: one block in memory at a time, all batches through it.

Each block is read at most twice, and an embedding or output head as often as a pass uses it,
whatever the number of batches; `fimlora.measuring.streamed.schedule` says how.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fimlora.errors import EmptyCalibration, InvalidOption, NoLabelledExample
from fimlora.measuring.estimator_choice import decide_estimator
from fimlora.measuring.examples.batches import Batch, as_batch, count_examples
from fimlora.measuring.examples.examples import (
    Examples,
    example_losses,
    labelled_examples,
    losses_and_null,
)
from fimlora.measuring.examples.input_checks import check_inputs
from fimlora.measuring.examples.losses import Loss, choose_loss
from fimlora.measuring.examples.null_labels import NullLabels
from fimlora.measuring.examples.own_loss import without_auxiliary_losses
from fimlora.measuring.outcome import new_statistics
from fimlora.measuring.recording.mean_gradient import Signs
from fimlora.measuring.recording.quantities import layer_recorder_for, recorder_for
from fimlora.measuring.recording.recorder import Recorder
from fimlora.measuring.resume.fingerprints import digest_batch
from fimlora.measuring.resume.merge import Shard, ShardSums
from fimlora.measuring.resume.progress_file import SavedSums, open_progress
from fimlora.measuring.run_in_shards import RunInShards
from fimlora.measuring.settings import (
    Settings,
    check_gradients_allowed,
    check_record,
    check_weights,
)
from fimlora.measuring.streamed.block_weights import BlockWeights
from fimlora.measuring.streamed.blocks import find_blocks
from fimlora.measuring.streamed.boundary_store import BoundaryStore, boundary_store
from fimlora.measuring.streamed.in_shards import merge_blocks, of_shard, packed, unpacked
from fimlora.measuring.streamed.paused_forward import casting_as_one_graph, stops
from fimlora.measuring.streamed.progress import LayerwiseProgress
from fimlora.measuring.streamed.schedule import LayerwiseRun, NewRecorder, ResultsOf
from fimlora.measuring.streamed.side_pass import SideQuestions
from fimlora.measuring.streamed.weights_alone import look_at_weights
from fimlora.memory.device import peak_bytes
from fimlora.memory.need import SKETCH_WIDTH, gradients_fit
from fimlora.model.checkpoint import Checkpoint
from fimlora.model.drawn import drawn_modules
from fimlora.model.input_limits import input_limits
from fimlora.model.pass_state import PassState
from fimlora.model.preserved import preserved
from fimlora.model.skeleton import build_skeleton
from fimlora.model.targets import Choice, count_base_parameters
from fimlora.model.weight_reader import open_weights
from fimlora.plan import TargetModule
from fimlora.statistics import Statistics
from fimlora.statistics.options import Execution, Executor, Passes
from fimlora.statistics.statistics import Groups


def measure_streamed(
    model_path: str | Path,
    batches: Iterable[Mapping[str, Any]],
    settings: Settings = Settings(),
    *,
    model_class: Any = None,
    config: Any = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    max_boundary_bytes: int | None = None,
    boundary_folder: str | Path | None = None,
    weights_seed: int | None = None,
    ignore_mismatched_sizes: bool = False,
    head_weights: Mapping[str, Tensor] | None = None,
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
        settings: What to measure.
        model_class: A model class or auto class of transformers, such as
            ``AutoModelForSequenceClassification``; ``None`` for the one the config names.
        config: The model's config, if it is not the folder's own (another ``num_labels``).
        dtype: Dtype to run in; ``None`` for the config's. Half precision is slow on a CPU
            without units for it.
        device: Where blocks compute.
        max_boundary_bytes: How much of the blocks' inputs may stay in host memory; the
            rest goes to disk. ``None`` for all.
        boundary_folder: Where on disk; ``None`` for the system's temporary folder.
        weights_seed: Seed of weights that the checkpoint lacks (a fresh head): each is drawn
            as its architecture says, from this seed and its name; ``None`` for the seed of
            the settings. No module with such a weight is a target.
        ignore_mismatched_sizes: As for ``from_pretrained``: a head whose shape in the
            checkpoint is another is drawn anew.
        head_weights: Of what is drawn, parameters to have instead, by name, such as
            `fimlora.fit_head_streamed` has fitted.

    Returns:
        The statistics of the batches that were used.

    Raises:
        EmptyCalibration: There is no batch, or no example with a label.
        InvalidOption: An argument is outside what is allowed.
        InvalidCheckpoint: The weights cannot be read, or do not fit the model.
        InvalidProgress: The progress file is damaged, or comes from another run.
        UnsupportedModule: The model cannot be cut into blocks that run one by one.
    """  # noqa: DOC502 - the helpers raise
    found = _measure(
        model_path,
        batches,
        replace(settings, shard=None),
        model_class=model_class,
        config=config,
        dtype=dtype,
        device=device,
        max_boundary_bytes=max_boundary_bytes,
        boundary_folder=boundary_folder,
        weights_seed=weights_seed,
        redraws=ignore_mismatched_sizes,
        head_weights=head_weights or {},
    )
    assert isinstance(found, Statistics)
    return found


def measure_streamed_shard(
    model_path: str | Path,
    batches: Iterable[Mapping[str, Any]],
    settings: Settings,
    shard: Shard,
    *,
    ignore_mismatched_sizes: bool = False,
    head_weights: Mapping[str, Tensor] | None = None,
    **options: Any,
) -> ShardSums:
    """Measure some of the batches of a run, for whoever merges them with the others.

    Args:
        model_path: As for `measure_streamed`, as are all that follow.
        batches: All calibration batches of the run.
        settings: What to measure.
        shard: Which of the batches to run here.
        ignore_mismatched_sizes: As there.
        head_weights: As there.
        **options: All others.

    Returns:
        Their sums.
    """
    found = _measure(
        model_path, batches, replace(settings, shard=shard),
        redraws=ignore_mismatched_sizes, head_weights=head_weights or {}, **options,
    )  # fmt: skip
    assert isinstance(found, ShardSums)
    return found


def _measure(
    model_path: str | Path,
    batches: Iterable[Mapping[str, Any]],
    settings: Settings,
    *,
    model_class: Any = None,
    config: Any = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    max_boundary_bytes: int | None = None,
    boundary_folder: str | Path | None = None,
    weights_seed: int | None = None,
    redraws: bool,
    head_weights: Mapping[str, Tensor],
) -> Statistics | ShardSums:
    """Build the skeleton, and stream it."""
    _check_can_be_streamed(settings)
    folder = Path(model_path)
    checkpoint = Checkpoint(folder)
    model = build_skeleton(folder, model_class=model_class, config=config, dtype=dtype)
    spill = Path(boundary_folder) if boundary_folder is not None else None
    with boundary_store(max_boundary_bytes, spill) as store:
        return stream(
            model,
            checkpoint,
            batches,
            settings,
            device=torch.device(device),
            store=store,
            weights_seed=weights_seed,
            redraws=redraws,
            head_weights=head_weights,
        )


def stream(
    model: nn.Module,
    checkpoint: Checkpoint,
    batches: Iterable[Mapping[str, Any]],
    settings: Settings,
    *,
    device: torch.device,
    store: BoundaryStore,
    weights_seed: int | None = None,
    redraws: bool = False,
    head_weights: Mapping[str, Tensor] = {},
    new_weights: Callable[..., BlockWeights] = BlockWeights,
) -> Statistics | ShardSums:
    """Measure a skeleton with the weights of a checkpoint.

    Args:
        model: The skeleton.
        checkpoint: Its weights.
        batches: The calibration batches.
        settings: What to measure.
        device: Where blocks compute.
        store: Keeps what blocks are called with.
        weights_seed: Seed of weights that the checkpoint lacks.
        redraws: Draw a head anew whose shape in the checkpoint is another.
        head_weights: Of what is drawn, parameters to have instead, by name.
        new_weights: Makes what gives blocks their weights.

    Returns:
        The statistics, or the sums of a shard if the settings name one.
    """
    check_record(settings.parsed_record, model)
    seed = settings.seed if weights_seed is None else weights_seed
    reader = open_weights(model, checkpoint, seed=seed, redraws=redraws, instead=head_weights)
    choice = settings.without(drawn_modules(model, reader.drawn)).choose(model)
    check_weights(settings.parsed_record, model, choice.modules)
    n_parameters = count_base_parameters(model)
    blocks = find_blocks(model, choice.modules)
    weights = new_weights(model, reader, blocks, device)
    identity = _identity(settings, weights_seed, redraws=redraws)
    if head_weights:
        identity["fitted head"] = digest_batch(head_weights).hex()
    saved = open_progress(
        settings.progress_file, model, choice.modules, identity, settings.loss_fn,
        checkpoint=checkpoint, devices=[device],
    )  # fmt: skip
    with (
        running(model, blocks, weights, seed=settings.seed) as state,
        without_auxiliary_losses(model) as left_out,
    ):
        cut = _CutModel(model, choice, n_parameters, blocks, weights, device, saved, state)
        if settings.passes is Passes.NONE:
            return cut.weights_alone(settings)
        return cut.measured(batches, settings, store, left_out)


@dataclass(frozen=True, slots=True)
class _CutModel:
    """A skeleton in blocks that are given their weights one by one, ready to run.

    Attributes:
        model: The skeleton.
        choice: Its targets.
        n_parameters: Of the base model.
        blocks: Its blocks by name.
        weights: Gives them their weights.
        device: Where they compute.
        saved: Sums of a run that is gone on with.
        state: What passes begin from.
    """

    model: nn.Module
    choice: Choice
    n_parameters: int
    blocks: Mapping[str, nn.Module]
    weights: BlockWeights
    device: torch.device
    saved: SavedSums | None
    state: PassState

    def weights_alone(self, settings: Settings) -> Statistics:
        """Give what the weights say without a pass."""
        progress = self._progress(settings, settings.n_batches)
        new_recorder = _recorders_of_blocks(settings, self.choice.modules, self.device)
        found = look_at_weights(
            self.model, self.choice.modules, self.blocks, self.weights, new_recorder, progress
        )
        return new_statistics(
            self.model, self.choice, settings, loss=None, batch_sizes=(),
            groups=_join(self.choice.modules, found),
            base_parameters=self.n_parameters, execution=self._execution(0),
        )  # fmt: skip

    def measured(
        self,
        batches: Iterable[Mapping[str, Any]],
        settings: Settings,
        store: BoundaryStore,
        left_out: tuple[str, ...],
    ) -> Statistics | ShardSums:
        """Give what passes over batches say: of all, of a shard, or of all shards merged."""
        modules = self.choice.modules
        items = _read(batches, settings, self.saved)
        loss, null, found = _examples_of(items, self.model, settings, self.device)
        shards = RunInShards.of(
            settings, self.model, modules, settings.identity(Executor.STREAMED)
        )
        if shards is not None:
            shards.batches += [digest_batch(item).hex() for item in items]
        settings, reason = decide_estimator(settings, self.model, modules, items[0])
        new_recorder = _recorders_of_blocks(
            replace(settings, null=null is not None), modules, self.device
        )
        if shards is not None and settings.shards:
            parts = self._merged(shards, settings, new_recorder)
            largest = shards.largest
        else:
            own = _Own.of(settings, found, new_recorder)
            parts, largest = self._run(own, settings, store, loss)
            if shards is not None:
                return unpacked(shards, parts, largest)
        return new_statistics(
            self.model,
            self.choice,
            settings,
            estimator_reason=reason,
            loss=loss,
            auxiliary_losses=left_out,
            batch_sizes=[len(examples) for examples in found if len(examples)],
            null_labels=null,
            base_parameters=self.n_parameters,
            execution=self._execution(largest, settings.n_shards),
            groups=_join(modules, parts),
        )

    def _merged(
        self, shards: RunInShards, settings: Settings, new_recorder: NewRecorder
    ) -> list[Groups]:
        """Merge what the shards have found, block by block."""
        read = self.weights if settings.reads_weights else None
        modules = self.choice.modules
        return [
            *merge_blocks(
                shards, self.model, modules, self.blocks, read, new_recorder, self.device
            )
        ]

    def _run(
        self, own: "_Own", settings: Settings, store: BoundaryStore, loss: Loss
    ) -> tuple[list[Groups], int]:
        """Run all batches through one block after another.

        Returns:
            What was recorded in each block; the examples of the largest micro-batch.
        """
        passes = _Passes(self.model, loss, self.device)
        run = LayerwiseRun(
            self.model, self.choice.modules, self.blocks, self.weights, store, own.batches, self.state,
            questions=SideQuestions(self.model, loss, passes.ask, self.device),
            losses=passes.losses,
            new_recorder=own.new_recorder,
            new_layer_recorder=partial(layer_recorder_for, settings),
            progress=self._progress(settings, len(own.batches)),
            goes_back=settings.passes is Passes.BACKWARD,
            results_of=own.results_of,
        )  # fmt: skip
        parts = run.measure(settings.micro_batch_size) if own.has_labels else []
        return parts, run.largest

    def _progress(self, settings: Settings, n_batches: int) -> LayerwiseProgress:
        goes_back = settings.passes is Passes.BACKWARD
        return LayerwiseProgress(
            n_batches, len(self.blocks), self.saved, settings.on_batch, goes_back=goes_back
        )

    def _execution(self, largest: int, n_shards: int = 1) -> Execution:
        return Execution(Executor.STREAMED, largest, peak_bytes(self.device), n_shards)


@dataclass(frozen=True, slots=True)
class _Passes:
    """Runs the model over examples.

    Attributes:
        model: The skeleton.
        loss: The loss.
        device: Where blocks compute.
    """

    model: nn.Module
    loss: Loss
    device: torch.device

    def ask(self, part: Examples) -> Tensor:
        """Give the losses of a pass that is not measured."""
        return example_losses(self.model, self.loss, part, self.device)

    def losses(self, part: Examples, where: str) -> tuple[Tensor, ...]:
        """Give those of one that is, and of the null."""
        return losses_and_null(self.model, self.loss, part, self.device, where)


@dataclass(frozen=True, slots=True)
class _Own:
    """What is run here: all batches, or those of a shard.

    Attributes:
        batches: Their examples.
        new_recorder: Makes a recorder for the targets of one block.
        results_of: Gives what it has come to.
    """

    batches: Sequence[Examples]
    new_recorder: NewRecorder
    results_of: ResultsOf = Recorder.groups

    @classmethod
    def of(
        cls, settings: Settings, batches: Sequence[Examples], new_recorder: NewRecorder
    ) -> "_Own":
        """Choose them among all."""
        if settings.shard is None:
            return cls(batches, new_recorder)
        shard, start = settings.shard, settings.shard.start
        n_before = sum(len(examples) > 0 for examples in batches[:start])
        return cls(batches[start:], of_shard(new_recorder, n_before, shard.parts_bytes), packed)

    @property
    def has_labels(self) -> bool:
        """Whether there is anything to measure."""
        return any(len(examples) for examples in self.batches)


def _check_can_be_streamed(settings: Settings) -> None:
    check_gradients_allowed()
    if settings.train_mode:
        raise InvalidOption(
            "train_mode=True cannot be streamed, as dropout would be drawn in another order "
            "than resident; measure it resident, or without dropout"
        )
    if live := sorted(record for record in settings.parsed_record if record.needs_adapter):
        raise InvalidOption(
            f"record={live[0].value!r} cannot be streamed: a checkpoint's blocks "
            "carry no adapter; measure a live PEFT model resident"
        )


def _identity(
    settings: Settings, weights_seed: int | None, *, redraws: bool
) -> dict[str, object]:
    """Name what saved sums depend on."""
    return {
        **settings.identity(Executor.STREAMED),
        "weights_seed": weights_seed,
        "ignore_mismatched_sizes": redraws,
    }


@contextmanager
def running(
    model: nn.Module,
    blocks: Mapping[str, nn.Module],
    weights: BlockWeights,
    *,
    seed: int,
) -> Iterator[PassState]:
    """Prepare a skeleton for passes that stop at its blocks, and put it back.

    Args:
        model: The skeleton.
        blocks: Its blocks by name.
        weights: Gives them their weights.
        seed: Seed of the random state meanwhile.

    Yields:
        The state that passes begin from.
    """
    with (
        weights.attached(),
        preserved(model, train_mode=False, seed=seed) as state,
        stops(blocks),
        casting_as_one_graph(),
    ):
        yield state


def _read(
    batches: Iterable[Mapping[str, Any]], settings: Settings, saved: SavedSums | None
) -> list[Batch]:
    """Read all batches, and compare them with those of a run that is gone on with."""
    items = [as_batch(item) for item in itertools.islice(batches, settings.last_batch)]
    if saved is not None:
        digests = [digest_batch(item).hex() for item in items]
        saved.expect({f"batch {i}": digest for i, digest in enumerate(digests, 1)})
    return items


def _examples_of(
    items: Sequence[Batch], model: nn.Module, settings: Settings, device: torch.device
) -> tuple[Loss, NullLabels | None, list[Examples]]:
    """Find the labelled examples of all batches, and the loss that the first one shows."""
    if not items:
        raise EmptyCalibration("the loader gave no batch")
    limits = input_limits(model)
    for number, item in enumerate(items, 1):
        check_inputs(item, limits, f"batch {number} of {len(items)}")
    loss = choose_loss(model, items[0], settings.loss_fn)
    null = NullLabels.of(items[0], loss, settings.seed) if settings.has_null else None
    starts = itertools.accumulate(map(count_examples, items), initial=settings.first_example)
    found = [
        labelled_examples(item, loss, device, first=first, null=null)
        for item, first in zip(items, starts, strict=False)
    ]
    if settings.shard is None and not any(len(examples) for examples in found):
        raise NoLabelledExample("no example carries a label")
    return loss, null, found


def _recorders_of_blocks(
    settings: Settings, modules: Sequence[TargetModule], device: torch.device
) -> NewRecorder:
    """Decide once, for all modules, whether gradients are sketched; share the signs."""
    signs = Signs(SKETCH_WIDTH)
    fits = gradients_fit(modules, settings.spectra_bytes)
    n_bytes = settings.spectra_bytes if fits else 0

    def new(targets: Sequence[TargetModule]) -> Recorder:
        return recorder_for(settings, targets, device, spectra_bytes=n_bytes, signs=signs)

    return new


def _join(modules: Sequence[TargetModule], parts: Sequence[Groups]) -> Groups:
    """Join what was recorded in the blocks, in the model's order."""
    joined: Groups = {}
    # Not every block has experts to count the tokens of.
    for group in dict.fromkeys(group for part in parts for group in part):
        of_parts = (part.get(group, {}) for part in parts)
        by_name = {name: value for found in of_parts for name, value in found.items()}
        joined[group] = {m.name: by_name[m.name] for m in modules if m.name in by_name}
    return joined
