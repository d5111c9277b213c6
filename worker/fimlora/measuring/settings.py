"""What a measurement is asked for, checked once, whether it runs resident or streamed."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fimlora.errors import InvalidOption, UnsupportedModule
from fimlora.measuring.examples.losses import LossFn
from fimlora.measuring.resume.merge import Shard, ShardSums
from fimlora.measuring.resume.progress_file import ProgressFile
from fimlora.memory.need import (
    MOMENT_RECORDS,
    N_COMPONENTS,
    SPECTRA_BYTES,
    WHOLE_RECORDS,
    gradients_fit,
    whole_gradient_bytes,
)
from fimlora.memory.out_of_memory import error_for, format_bytes
from fimlora.model.peft_trial import unadaptable_beside
from fimlora.model.plain_weight import check_plain_weights
from fimlora.model.saved_whole import find_saved
from fimlora.model.targets import Choice, Unadaptable, base_model_of, choose_targets, locate
from fimlora.plan import TargetModule
from fimlora.statistics.options import (
    Estimator,
    Executor,
    Passes,
    Record,
    check_scale,
    parse_record,
)

OnBatch = Callable[[int, int], None]
# What looks at the numbers of the weights.
_WEIGHTS_READ = frozenset({Record.WEIGHT_GRADIENT, Record.WEIGHT_CONDITION})
# What is updated batch after batch, and is no sum.
_IN_SEQUENCE = frozenset({Record.INPUT_COMPONENTS})
# What is recorded of fused experts; all else is of one matrix.
_OF_EXPERTS = frozenset({Record.SPECTRA, Record.BATCH_ENERGIES})
# What is of all tokens of an input, or of those with a label, but not of padding.
_MASKED = MOMENT_RECORDS | {Record.INPUT_COMPONENTS}


@dataclass(frozen=True)
class Settings:
    """What to measure of a model; the same for `measure`, `measure_folder` and `measure_streamed`.

    Attributes:
        target_modules: See `fimlora.model.targets.find_targets`.
        exclude_modules: What of these to leave out; see `fimlora.model.targets.choose_targets`.
        target_parameters: Fused experts that are targets besides: ``"all"``, or names or endings
            of parameters, as in PEFT; see `fimlora.model.targets.find_targets`.
        modules_to_save: Names, or endings after a dot, of modules that are trained whole besides,
            as in PEFT: they are not measured, and nothing inside one is a target; see
            `fimlora.model.saved_whole.find_saved`.
        drawn: Names of modules whose weights the checkpoint lacks: they are no targets.
        unadaptable: Says which modules an adapter cannot hold as planned, and why: they are
            no targets. ``None`` asks the installed PEFT.
        choice: What was chosen of the model already, by these settings; it is not chosen anew.
        n_batches: Batches to use at most.
        estimator: ``auto``, ``exact``, ``sketched``, ``sampled``, ``both`` or ``none``; see
            `fimlora.statistics.options.Estimator`. ``auto`` decides by the shape of the first
            batch, so parts of one run need another. With ``none`` the run goes no further than
            what is recorded besides: see `passes`.
        rank: Rows of the A that ``sampled`` and ``sketched`` draw.
        seed: Seed of that A, and of the random state while measuring.
        scale: LoRA scale s = alpha / rank that scores are stated for.
        record: What to record besides: ``spectra``, which the method ``spectral`` needs
            (experimental), ``moments``, ``batch_energies``, and what other methods or initial
            weights need; see `fimlora.statistics.options.Record`. What is of gradients or inputs,
            but for ``projected_gradient``, keeps the modules' inputs until the backward pass,
            where there is one.
        spectra_bytes: Memory for the gradients of all modules that spectra are taken of.
            Where they need more they are sketched, and the statistics state the error; what
            needs them whole, as ``weight_gradient`` does, is then refused unless streamed.
            Streamed, only those of one block are in memory at once.
        n_components: Principal components to keep of each module's inputs at most, where
            ``input_components`` are recorded: as many ranks can be told apart.
        micro_batch_size: Examples per forward pass, to save memory; changes no result. When
            memory runs out it is halved, and the pass that failed is run again.
        train_mode: Leave dropout on, as the published code does. Off where the model is
            streamed: its dropout would be drawn block after block, not batch after batch.
        loss_fn: Maps the model's outputs and the batch to one loss per example.
        on_batch: Called with (batches done, batches expected) after each batch; what it
            raises ends the measurement. Streamed, it is called after each block: all batches
            advance together, so "done" is the share of the work, and numbers may repeat.
        progress_file: Save the sums here after batches, or streamed after blocks on the way
            back. If a run was cut off and left the file, this one goes on from it, over the
            same batches, to the same statistics; see `fimlora.ProgressFile`.
        first_example: Examples in the batches before these, if these are a part of a run: then
            ``sketched`` draws what it draws in the whole one.
        null: Go backward a second time over every forward pass, from losses under labels of
            other examples: `fimlora.Statistics.null`. Without a first time there is none.
        halves: Keep the sums of every other batch apart besides: `fimlora.Statistics.halves`.
        shard: Which batches to run of those that are given; the others are only looked at. For
            `fimlora.measuring.shards.measure_shard`.
        shards: What shards of this run came to: they are added up, and no batch is run.

    Raises:
        InvalidOption: One is outside what is allowed, or what is asked for cannot be sharded.
    """

    target_modules: str | Sequence[str] | None = None
    exclude_modules: str | Sequence[str] | None = None
    target_parameters: str | Sequence[str] | None = None
    modules_to_save: Sequence[str] | None = None
    drawn: Collection[str] = ()
    unadaptable: Unadaptable | None = None
    choice: Choice | None = None
    n_batches: int = 8
    estimator: str = "auto"
    rank: int = 8
    seed: int = 0
    scale: int | float = 2
    record: str | Collection[str] = ()
    spectra_bytes: int = SPECTRA_BYTES
    n_components: int = N_COMPONENTS
    micro_batch_size: int | None = None
    train_mode: bool = False
    loss_fn: LossFn | None = None
    on_batch: OnBatch | None = None
    progress_file: str | Path | ProgressFile | None = None
    first_example: int = 0
    null: bool = False
    halves: bool = False
    shard: Shard | None = None
    shards: Sequence[ShardSums] = ()

    def __post_init__(self) -> None:
        """Check them."""
        if self.shard is not None or self.shards:
            check_shardable(self)
        _check_count(
            1, n_batches=self.n_batches, rank=self.rank, micro_batch_size=self.micro_batch_size,
            n_components=self.n_components,
        )  # fmt: skip
        _check_count(0, first_example=self.first_example)
        check_scale(self.scale)
        _parse_estimator(self.estimator)
        if not self.parsed_record and self.parsed_estimator is Estimator.NONE:
            raise InvalidOption(
                "estimator='none' leaves nothing to measure without record; allowed are "
                f"{', '.join(repr(str(one)) for one in Record)}, or another estimator"
            )

    @property
    def parsed_estimator(self) -> Estimator:
        """What to record of the gradients; ``auto`` until the first batch is there."""
        return _parse_estimator(self.estimator)

    @property
    def parsed_record(self) -> frozenset[Record]:
        """What to record besides."""
        return parse_record(self.record)

    @property
    def passes(self) -> Passes:
        """How far a run goes for all that is asked: no batch, forward passes, or back as well."""
        of_records = (record.passes for record in self.parsed_record)
        return Passes.most([self.parsed_estimator.passes, *of_records])

    @property
    def last_batch(self) -> int:
        """Up to which batch the loader is asked."""
        return self.n_batches if self.shard is None else min(self.n_batches, self.shard.stop)

    def runs(self, number: int) -> bool:
        """Whether a batch, counted from 0, is run here: not where other shards hold it."""
        return not self.shards and (self.shard is None or self.shard.holds(number))

    @property
    def n_shards(self) -> int:
        """In how many parts it was measured."""
        return len(self.shards) or 1

    @property
    def reads_weights(self) -> bool:
        """Whether the numbers of the weights are looked at besides."""
        return bool(self.parsed_record & _WEIGHTS_READ)

    @property
    def has_null(self) -> bool:
        """Whether there are gradients under other labels, if such labels can be had."""
        return self.null and self.passes is Passes.BACKWARD

    def without(self, drawn: Collection[str]) -> "Settings":
        """Name modules whose weights the checkpoint lacks.

        Args:
            drawn: Their names.

        Returns:
            The same settings, with these left out besides.
        """
        return replace(self, drawn={*self.drawn, *drawn})

    def choose(self, model: nn.Module) -> Choice:
        """Choose what to measure of a model: the one place that both executors ask.

        Args:
            model: The model, or its skeleton.

        Returns:
            The target modules, and what is not one.
        """
        if self.choice is not None:
            return self.choice
        saved = [each.name for each in find_saved(base_model_of(model), self.modules_to_save)]
        return choose_targets(
            model,
            self.target_modules,
            exclude_modules=self.exclude_modules,
            target_parameters=self.target_parameters,
            drawn=self.drawn,
            saved=saved,
            unadaptable=self.unadaptable or unadaptable_beside(saved),
        )

    def identity(self, executor: Executor) -> dict[str, Any]:
        """Name what saved sums depend on.

        Args:
            executor: How they come about.

        Returns:
            Values by the names that users know them by.
        """
        return {
            "estimator": self.estimator,
            "rank": self.rank,
            "seed": self.seed,
            "scale": self.scale,
            "record": sorted(self.parsed_record),
            "spectra_bytes": self.spectra_bytes,
            "n_components": self.n_components,
            "n_batches": self.n_batches,
            "micro_batch_size": self.micro_batch_size,
            "train_mode": self.train_mode,
            "null": self.null,
            "halves": self.halves,
            "first_example": self.first_example,
            "executor": executor,
            **({"shard": [self.shard.start, self.shard.stop]} if self.shard else {}),
        }

    def provenance(self) -> dict[str, Any]:
        """Name what statistics say about how they were made.

        Returns:
            Fields of `fimlora.Statistics`.
        """
        is_drawn = self.parsed_estimator.is_drawn
        reads_seed = is_drawn or Record.PROJECTED_GRADIENT in self.parsed_record
        return {
            "estimator": self.parsed_estimator,
            "scale": self.scale,
            "train_mode": self.train_mode,
            "rank": self.rank if is_drawn else None,
            "seed": self.seed if reads_seed else None,
        }


def _parse_estimator(estimator: str) -> Estimator:
    if estimator not in set(Estimator):
        allowed = ", ".join(repr(known.value) for known in Estimator)
        raise InvalidOption(f"estimator={estimator!r}; allowed are {allowed}")
    return Estimator(estimator)


def _check_count(least: int, **options: int | None) -> None:
    """Refuse a count that is not a whole number, or too small."""
    for name, value in options.items():
        if value is not None and (value is True or not hasattr(value, "__index__")):
            raise InvalidOption(f"{name}={value!r}: it must be an integer of at least {least}")
        if value is not None and value < least:
            raise InvalidOption(f"{name}={value}: it must be at least {least}")


def check_shardable(settings: Settings) -> None:
    """Refuse to measure in shards what depends on the batches before.

    Args:
        settings: What is measured.

    Raises:
        InvalidOption: Names what does.
    """
    if settings.train_mode:
        raise InvalidOption(
            "train_mode=True cannot be measured in shards, as dropout is drawn batch after "
            "batch; measure it in one run, or without dropout"
        )
    if wanted := sorted(settings.parsed_record & _IN_SEQUENCE):
        raise InvalidOption(
            f"record={wanted[0].value!r} cannot be measured in shards, as each batch updates what "
            "those before it came to; measure it in one run"
        )
    if settings.passes is Passes.NONE:
        raise InvalidOption(
            "what is of weights alone cannot be measured in shards, as it reads no batch"
        )


def check_gradients_allowed() -> None:
    """Refuse to run where torch builds no graph whatever is asked of it.

    Raises:
        InvalidOption: Inference mode is on.
    """
    if torch.is_inference_mode_enabled():
        raise InvalidOption(
            "measuring needs gradients, which torch.inference_mode() rules out: call it "
            "outside; torch.no_grad() is allowed"
        )


def check_whole_gradients(
    settings: Settings, modules: Sequence[TargetModule], device: torch.device
) -> None:
    """Refuse to hold whole gradients of all modules at once where they may not be.

    Args:
        settings: What is measured.
        modules: The target modules.
        device: Where they compute.

    Raises:
        OutOfMemory: They take more than `Settings.spectra_bytes`.
    """  # noqa: DOC502 - or its kind for a GPU
    wanted = sorted(settings.parsed_record & WHOLE_RECORDS)
    if wanted and not gradients_fit(modules, settings.spectra_bytes):
        needed = whole_gradient_bytes(modules)
        raise error_for(device)(
            f"record={wanted[0].value!r} keeps an array as large as the weight of each target "
            f"module, {format_bytes(needed)} ({needed:,} bytes), and spectra_bytes="
            f"{settings.spectra_bytes} allows {format_bytes(settings.spectra_bytes)}: stream the "
            "model, which holds one block's at a time, allow more, or choose fewer modules"
        )


def check_weights(
    record: frozenset[Record], model: nn.Module, modules: Sequence[TargetModule]
) -> None:
    """Refuse to record what reads weights where these are packed, or hold many matrices.

    Args:
        record: What to record.
        model: The model.
        modules: Its target modules.

    Raises:
        UnsupportedModule: One of them holds its weight quantised, or is of fused experts.
    """
    table = next((module.name for module in modules if module.is_embedding), None)
    if table is not None and record:
        raise UnsupportedModule(
            f"record={min(record).value!r} is of linear maps, and {table!r} is an embedding; leave it "
            "out, or take method 'fim'"
        )
    experts = next((module.name for module in modules if module.n_experts is not None), None)
    if experts is not None and (odd := sorted(record - _OF_EXPERTS)):
        raise UnsupportedModule(
            f"record={odd[0].value!r} is of one matrix per module, and {experts!r} holds those of "
            "all experts; leave target_parameters out, or take a method that needs none but: "
            f"{', '.join(sorted(each.value for each in _OF_EXPERTS))}"
        )
    if wanted := sorted(record & _WEIGHTS_READ):
        located = {module.name: locate(model, module) for module in modules}
        check_plain_weights(located, wanted_by=[each.value for each in wanted])


def check_record(record: frozenset[Record], model: nn.Module) -> None:
    """Refuse to record what would be wrong for a model.

    Args:
        record: What to record.
        model: The model, wrapped by PEFT or not.

    Raises:
        UnsupportedModule: Moments, components or layers' similarities are wanted of an
            encoder-decoder.
    """
    base = base_model_of(model)
    is_encoder_decoder = getattr(getattr(base, "config", None), "is_encoder_decoder", False)
    if is_encoder_decoder and (masked := sorted(record & _MASKED)):
        raise UnsupportedModule(
            f"record={masked[0].value!r} leaves out padding by one attention mask, and {type(base).__name__} "
            "has tokens of two kinds; record='spectra' is allowed"
        )
    if is_encoder_decoder and Record.LAYER_SIMILARITY in record:
        raise UnsupportedModule(
            f"record='layer_similarity' compares layers at one token of each example, and "
            f"{type(base).__name__} has two stacks over tokens of their own, whose layers are not "
            "to be ranked with each other; method 'fisher-layers' is allowed"
        )
