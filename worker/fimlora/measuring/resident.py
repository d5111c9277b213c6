"""Measure the empirical Fisher information of LoRA-B on a model that has no LoRA.

At B = 0 the gradient of B is ``s * sum_t g_t (A x_t)^T``, with x a module's input and g the
gradient of its output: both exist in the frozen base model. So nothing is attached; hooks
see x and g while a calibration batch goes forward and backward once.
"""

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fimlora.adapter.factors import Factors, acting_factors
from fimlora.errors import (
    EmptyCalibration,
    InvalidOption,
    NoLabelledExample,
    UnsupportedModule,
)
from fimlora.measuring.contrast import measure_both
from fimlora.measuring.estimator_choice import decide_estimator
from fimlora.measuring.examples.batches import Batch, as_batch, count_examples
from fimlora.measuring.examples.examples import (
    Examples,
    check_finite,
    labelled_examples,
    losses_and_null,
)
from fimlora.measuring.examples.input_checks import check_inputs
from fimlora.measuring.examples.losses import Loss, LossFn, choose_loss
from fimlora.measuring.examples.null_labels import NullLabels
from fimlora.measuring.examples.own_loss import without_auxiliary_losses
from fimlora.measuring.first_look import FirstLook
from fimlora.measuring.gradient_trial import check_gradients_pass
from fimlora.measuring.micro_batch_size import MicroBatches
from fimlora.measuring.outcome import new_statistics
from fimlora.measuring.recording.addends import Allowance
from fimlora.measuring.recording.layers_seen import watching_layers
from fimlora.measuring.recording.quantities import recorder_for
from fimlora.measuring.recording.recorder import Recorder
from fimlora.measuring.resident_progress import RunProgress
from fimlora.measuring.resume.merge import Shard, ShardSums
from fimlora.measuring.resume.progress_file import ProgressFile, open_progress
from fimlora.measuring.run_in_shards import RunInShards
from fimlora.measuring.settings import (
    OnBatch,
    Settings,
    check_gradients_allowed,
    check_record,
    check_weights,
    check_whole_gradients,
)
from fimlora.memory.device import peak_bytes
from fimlora.memory.need import N_COMPONENTS, SPECTRA_BYTES
from fimlora.memory.out_of_memory import is_out_of_memory, out_of_memory, release
from fimlora.model.compiled import running_uncompiled
from fimlora.model.exclusive import exclusive
from fimlora.model.hooks import Watch, watch_modules
from fimlora.model.input_limits import input_limits
from fimlora.model.linear_kinds import awaits_unpacking
from fimlora.model.pass_state import PassState
from fimlora.model.placement import input_device
from fimlora.model.preserved import preserved
from fimlora.model.random_states import random_states, restore_random_states
from fimlora.model.targets import Choice, base_model_of, count_base_parameters, locate
from fimlora.plan import TargetModule
from fimlora.statistics import Statistics
from fimlora.statistics.options import Execution, Executor, Passes, Record

_LESS = "cut examples shorter, run in a narrower dtype, or stream the model (measure_streamed)"


def measure(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    target_modules: str | Sequence[str] | None = None,
    exclude_modules: str | Sequence[str] | None = None,
    target_parameters: str | Sequence[str] | None = None,
    n_batches: int = 8,
    estimator: str = "auto",
    rank: int = 8,
    seed: int = 0,
    scale: int | float = 2,
    record: str | Collection[str] = (),
    spectra_bytes: int = SPECTRA_BYTES,
    n_components: int = N_COMPONENTS,
    micro_batch_size: int | None = None,
    train_mode: bool = False,
    loss_fn: LossFn | None = None,
    on_batch: OnBatch | None = None,
    progress_file: str | Path | ProgressFile | None = None,
    first_example: int = 0,
    null: bool = False,
    halves: bool = False,
    retain: Iterable[Mapping[str, Any]] | None = None,
) -> Statistics:
    """Run a few calibration batches and record what scores are made from.

    The model is frozen meanwhile and comes back exactly as it was, also after an exception.
    A second thread that would measure it waits until it is back.
    On a model that PEFT has wrapped, the base model's own linear maps are measured, with
    the adapter acting as it does; a fresh one (B = 0) changes nothing.

    Args:
        model: A transformers model for sequence classification, causal or sequence-to-sequence
            language modelling, on any device; for others give a ``loss_fn``.
        batches: Mappings of the model's argument names to tensors whose first axis counts
            examples. One that is shorter than ``n_batches`` is used up.
        target_modules: As in `fimlora.Settings`, as are all that follow.
        exclude_modules: What of these to leave out, such as modules that are drawn anew at
            every load: a model in memory does not tell which these are, a folder does.
        target_parameters: Fused experts that are targets besides.
        n_batches: Batches to use at most.
        estimator: ``auto``, ``exact``, ``sketched``, ``sampled``, ``both``, or ``none``: the run
            then goes no further than what is recorded needs, so that what is of inputs takes
            forward passes only, and what is of weights no batch.
        rank: Rows of the A that ``sampled`` and ``sketched`` draw.
        seed: Seed of that A, and of the random state while measuring.
        scale: LoRA scale s = alpha / rank that scores are stated for.
        record: What to record besides; see `fimlora.statistics.options.Record`.
        spectra_bytes: Memory for the gradients that spectra are taken of.
        n_components: Principal components of inputs to keep at most.
        micro_batch_size: Examples per forward pass, to save memory; changes no result.
        train_mode: Leave dropout on, as the published code does.
        loss_fn: Maps the model's outputs and the batch to one loss per example.
        on_batch: Called with (batches done, batches expected) after each batch.
        progress_file: Save the sums here after batches, and go on from those it holds.
        first_example: Examples in the batches before these, if these are a part of a run.
        null: Measure the same passes under labels of other examples, too.
        halves: Keep the sums of every other batch apart, too.
        retain: Batches of rows whose function is to be kept, measured after the others under the
            same head: what ``vila`` holds them against. At most as many are used.

    Returns:
        The statistics of the batches that were used.

    Raises:
        EmptyCalibration: There is no batch, or no example with a label.
        InvalidOption: An argument is outside what is allowed.
        OutOfMemory: Not even one example at a time fits.
        InvalidProgress: The progress file is damaged, or comes from another run.
        UnsupportedModule: A map of the model cannot be measured as it is.
    """  # noqa: DOC502 - the helpers raise
    settings = Settings(
        target_modules=target_modules, exclude_modules=exclude_modules,
        target_parameters=target_parameters, n_batches=n_batches,
        estimator=estimator, rank=rank, seed=seed, scale=scale, record=record,
        spectra_bytes=spectra_bytes, n_components=n_components, micro_batch_size=micro_batch_size, train_mode=train_mode,
        loss_fn=loss_fn, on_batch=on_batch, progress_file=progress_file,
        first_example=first_example, null=null, halves=halves,
    )  # fmt: skip
    run = partial(measure_resident, model)
    return (
        run(batches, settings)
        if retain is None
        else measure_both(run, batches, retain, settings)
    )


def measure_resident(
    model: nn.Module, batches: Iterable[Mapping[str, Any]], settings: Settings
) -> Statistics:
    """Do what `measure` does.

    Args:
        model: The model.
        batches: The calibration batches.
        settings: What to measure.

    Returns:
        The statistics of the batches that were used.
    """
    check_gradients_allowed()
    with exclusive(model), running_uncompiled(model) as plain:
        found = _measure_plain(plain, batches, replace(settings, shard=None))
    assert isinstance(found, Statistics)
    return found


def measure_resident_shard(
    model: nn.Module, batches: Iterable[Mapping[str, Any]], settings: Settings, shard: Shard
) -> ShardSums:
    """Measure some of the batches of a run, for whoever merges them with the others.

    Args:
        model: The model.
        batches: All calibration batches of the run.
        settings: What to measure.
        shard: Which of them to run here.

    Returns:
        Their sums.
    """
    check_gradients_allowed()
    with exclusive(model), running_uncompiled(model) as plain:
        found = _measure_plain(plain, batches, replace(settings, shard=shard))
    assert isinstance(found, ShardSums)
    return found


def _measure_plain(
    model: nn.Module, batches: Iterable[Mapping[str, Any]], settings: Settings
) -> Statistics | ShardSums:
    """Measure a model that no other thread measures now."""
    _check_weights(model)
    choice = settings.choose(model)
    modules, device = choice.modules, input_device(model)
    check_record(settings.parsed_record, model)
    check_weights(settings.parsed_record, model, modules)
    check_whole_gradients(settings, modules, device)
    if settings.passes is Passes.NONE:
        return _look_at_weights(model, choice, settings, device)
    factors = _acting_factors(model, modules, settings)
    sizes = MicroBatches(settings.micro_batch_size)
    identity, loss_fn = settings.identity(Executor.RESIDENT), settings.loss_fn
    saved = open_progress(settings.progress_file, model, modules, identity, loss_fn)
    total = _count_expected(batches, settings.n_batches)
    with (
        without_auxiliary_losses(model) as left_out,
        preserved(model, train_mode=settings.train_mode, seed=settings.seed) as state,
    ):
        if settings.passes is Passes.BACKWARD:
            check_gradients_pass(base_model_of(model), device=device)
        items = map(as_batch, itertools.islice(batches, settings.last_batch))
        if (first := next(items, None)) is None:
            raise EmptyCalibration("the loader gave no batch")
        shards = RunInShards.of(settings, model, modules, identity)
        settings, reason = decide_estimator(settings, model, modules, first)
        recorder = recorder_for(settings, modules, device, factors=factors)
        progress = RunProgress(
            recorder, sizes, total=total, shards=shards, saved=saved, on_batch=settings.on_batch
        )
        run = _measure_batches(
            model, modules, itertools.chain([first], items), settings, recorder, sizes, progress,
            state,
        )  # fmt: skip
    if shards is not None and settings.shard is not None:
        return shards.sums(recorder, sizes.largest)
    if shards is not None:
        shards.merge(recorder, device)
        sizes.largest = shards.largest
    if not recorder.batch_sizes:
        raise NoLabelledExample("no example carries a label")
    located = {module.name: locate(model, module) for module in modules}
    return new_statistics(
        model,
        choice,
        settings,
        estimator_reason=reason,
        loss=run.loss,
        auxiliary_losses=left_out,
        batch_sizes=recorder.batch_sizes,
        null_labels=run.null,
        base_parameters=count_base_parameters(model),
        execution=Execution(
            Executor.RESIDENT, sizes.largest, peak_bytes(device), settings.n_shards
        ),
        groups=recorder.groups(sum(recorder.batch_sizes), located),
    )


def _acting_factors(
    model: nn.Module, modules: Sequence[TargetModule], settings: Settings
) -> dict[str, Factors] | None:
    """Find the adapter whose gradients are asked for, if they are."""
    if Record.ADAPTER_GRADIENTS not in settings.parsed_record:
        return None
    if settings.train_mode:
        raise InvalidOption(
            "train_mode=True draws a dropout of its own for the adapter's input, which its "
            "gradients would have to be taken with; measure without"
        )
    return acting_factors(model, [module.name for module in modules])


def _look_at_weights(
    model: nn.Module, choice: Choice, settings: Settings, device: torch.device
) -> Statistics:
    """Record what the weights alone say: no batch is taken from the loader."""
    recorder = recorder_for(settings, choice.modules, device)
    located = {module.name: locate(model, module) for module in choice.modules}
    return new_statistics(
        model,
        choice,
        settings,
        loss=None,
        batch_sizes=(),
        base_parameters=count_base_parameters(model),
        execution=Execution(Executor.RESIDENT, 0, peak_bytes(device)),
        groups=recorder.groups(0, located),
    )


def _measure_batches(
    model: nn.Module,
    modules: tuple[TargetModule, ...],
    batches: Iterable[Batch],
    settings: Settings,
    recorder: Recorder,
    sizes: MicroBatches,
    progress: RunProgress,
    state: PassState,
) -> "_Run":
    """Record all batches; gives what the first one showed, such as the loss."""
    run: _Run | None = None
    device, limits = input_device(model), input_limits(model)
    first = settings.first_example
    if settings.shard is not None:
        recorder.keep_addends(Allowance(settings.shard.parts_bytes))
    progress.resume()
    located = {module.name: locate(model, module) for module in modules}
    goes_back = settings.passes is Passes.BACKWARD
    on_input = None if goes_back else recorder.on_input
    with (
        torch.set_grad_enabled(goes_back),
        watch_modules(
            located, recorder.keep, recorder.on_gradients, on_input=on_input
        ) as watch,
        watching_layers(model, modules, recorder),
    ):
        for number, batch in enumerate(batches):
            if run is None:
                loss = choose_loss(model, batch, settings.loss_fn)
                look = FirstLook(model, loss, state, device, progress.padding)
                null = _null_labels(batch, loss, settings, recorder)
                run = _Run(
                    model, modules, loss, null, look, watch, recorder, device, sizes, goes_back
                )
            where = progress.name_of(number)
            check_inputs(batch, limits, where)
            # Also of what is skipped: labels of later batches may come from it.
            examples = run.examples_of(batch, first)
            progress.look_at(batch)
            if not settings.runs(number):
                recorder.pass_over(min(1, len(examples)))
            elif not progress.skips(batch):
                progress.count(run.measure_batch(examples, where))
            first += count_examples(batch)
    progress.check_complete()
    assert run is not None, "the first batch is there"
    return run


def _null_labels(
    batch: Batch, loss: Loss, settings: Settings, recorder: Recorder
) -> NullLabels | None:
    """Say what draws null labels, if anything does: a loss of one's own may have none."""
    null = NullLabels.of(batch, loss, settings.seed) if settings.has_null else None
    if null is None:
        recorder.drop_null()
    return null


@dataclass(frozen=True)
class _Run:
    """What stays the same from batch to batch."""

    model: nn.Module
    modules: tuple[TargetModule, ...]
    loss: Loss
    null: NullLabels | None
    look: FirstLook
    watch: Watch
    recorder: Recorder
    device: torch.device
    sizes: MicroBatches
    goes_back: bool

    def examples_of(self, batch: Batch, first: int) -> Examples:
        """Take the labelled examples of the next batch, behind so many before it."""
        return labelled_examples(batch, self.loss, self.device, first=first, null=self.null)

    def measure_batch(self, examples: Examples, where: str) -> int:
        """Take one calibration batch through the model, in micro-batches, and record it.

        Args:
            examples: Those of its examples that carry a label.
            where: What to call it in an error.

        Returns:
            Their number.
        """
        n = len(examples)
        if not n:
            return 0
        examples = self.look.at(examples, where)
        losses, start = [], 0
        while start < n:
            size = 1 if self.recorder.one_at_a_time else self.sizes.of(n - start)
            part = examples.part(start, size)
            done = self._try(part, where, is_whole=len(part) == n)
            if done is not None:
                self.sizes.succeed(len(part))
                losses.append(done)
                start += len(part)
        checks = self.recorder.end_batch(examples.order)
        check_finite(self.modules, torch.cat(losses), checks, where)
        return n

    def _try(self, part: Examples, where: str, *, is_whole: bool) -> Tensor | None:
        """Run some examples; ``None`` when they are to be run differently, or fewer of them."""
        states = random_states(self.device) if self.model.training else None
        try:
            return self._run(part, where, is_whole=is_whole)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            named = out_of_memory(
                f"one example of {where} does not fit; {_LESS}", error, self.device
            )
            self.watch.begin_forward()
            self.recorder.discard()
            release(error, self.device)
            if not self.sizes.halve(len(part)):
                raise named from error
        if states is not None:  # dropout is to draw what it had drawn
            restore_random_states(states)
        return None

    def _run(self, examples: Examples, where: str, *, is_whole: bool) -> Tensor | None:
        """Run some examples; ``None`` when the recorder asks to run them differently."""
        self.watch.begin_forward()
        self.look.state.set()  # what ran before is forgotten
        self.recorder.begin(
            examples.weights,
            examples.token_mask,
            is_whole=is_whole,
            numbers=examples.numbers,
            label_mask=examples.label_mask,
        )
        with self.look.drawing_nothing():
            losses, *null = losses_and_null(self.model, self.loss, examples, self.device, where)
        if not self.goes_back:
            self.watch.end_forward()
        if self.recorder.adapt(self.watch.calls):
            return None
        if self.goes_back:
            # The sum, not the mean: each example's gradient comes out unscaled.
            self.watch.backward(losses.sum(), retain_graph=bool(null))
        for others in null:
            self.recorder.begin_null()
            self.watch.backward(others.sum())
        self.recorder.commit()
        return losses.detach()


def _check_weights(model: nn.Module) -> None:
    """Refuse weights that are not loaded, unless they come by themselves, or rule out gradients."""
    is_offloaded = any(hasattr(module, "_hf_hook") for module in model.modules())
    name = next((n for n, p in model.named_parameters() if p.is_meta), None)
    if name is not None and not is_offloaded:
        raise InvalidOption(
            f"parameter {name!r} is on the meta device and has no values: load the weights "
            "first, or give their folder to measure_streamed"
        )
    name = next((n for n, p in model.named_parameters() if p.is_inference()), None)
    if name is not None:
        raise InvalidOption(
            f"parameter {name!r} was made in torch.inference_mode(), and autograd takes no such "
            "tensor: load the model outside of it"
        )
    name = next((n for n, m in model.named_modules() if awaits_unpacking(m)), None)
    if name is not None:
        raise UnsupportedModule(
            f"{name!r} is compressed (compressed-tensors) until the model's first pass unpacks all of "
            "it for good, and PEFT trains no such map: load the model with quantization_config="
            "CompressedTensorsConfig(dequantize=True), or give its folder to measure_streamed"
        )


def _count_expected(batches: Iterable[Mapping[str, Any]], n_batches: int) -> int:
    """Say how many batches a loader will give.

    Returns:
        At most ``n_batches``.
    """
    try:
        return min(n_batches, len(batches))  # type: ignore[arg-type]
    except TypeError:  # a generator does not know its length
        return n_batches
