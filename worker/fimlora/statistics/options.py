"""The choices of a run by name: what is estimated and collected, and how it was carried out.

Statistics are the same whatever executor and micro-batch gave them, so an `Execution` is not
saved with them, or compared, or part of a rank map.
"""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum

from fimlora.errors import InvalidOption


class Executor(StrEnum):
    """Where a model's weights are while it is measured."""

    AUTO = "auto"
    """Resident if the model fits, else streamed."""
    RESIDENT = "resident"
    """All in device memory."""
    STREAMED = "streamed"
    """On disk, but for the blocks at work; see `fimlora.measuring.streamed.run`."""


@dataclass(frozen=True)
class Execution:
    """One run.

    Attributes:
        executor: ``resident`` or ``streamed``.
        micro_batch_size: Examples that went through the model at once, after all halvings.
        peak_memory_bytes: The most memory in use: on CUDA what torch had allocated since its
            counter was last reset; on a CPU the process's largest resident size so far,
            which also counts what ran before. ``None`` where the system does not say.
        n_shards: In how many parts the batches were measured.
    """

    executor: Executor
    micro_batch_size: int
    peak_memory_bytes: int | None
    n_shards: int = 1


class Record(StrEnum):
    """What `fimlora.measure` records on request."""

    SPECTRA = "spectra"
    """The leading singular values of each module's mean weight gradient (experimental)."""
    MOMENTS = "moments"
    """The second moments of each module's input features."""
    BATCH_ENERGIES = "batch_energies"
    """Row energies of each batch's weight gradient: what ``sampled`` expects over the random A."""
    ADAPTER_GRADIENTS = "adapter_gradients"
    """Squared gradients of the A and B that act in a live model, and gradients of gates on ranks."""
    GRADIENT_FACTORS = "gradient_factors"
    """The leading singular vectors and values of each module's mean weight gradient."""
    PROJECTED_GRADIENT = "projected_gradient"
    """Each module's summed weight gradient times the transposed A that is drawn for it."""
    PARAMETER_FISHER = "parameter_fisher"
    """The Frobenius norm of each weight's Fisher information, of which all entries are kept."""
    LAYER_SIMILARITY = "layer_similarity"
    """How alike the hidden states are that go into each module's layer and come out of it."""
    WEIGHT_GRADIENT = "weight_gradient"
    """The mean product of each weight with its mean gradient, which must be kept whole."""
    WHITENED_SPECTRA = "whitened_spectra"
    """Singular values of each mean weight gradient over the spread of its input features."""
    WEIGHT_CONDITION = "weight_condition"
    """The largest and the smallest singular value of each weight; no data enters."""

    INPUT_COMPONENTS = "input_components"
    """The leading principal components of each module's inputs, for which forward is enough."""

    @property
    def needs_adapter(self) -> bool:
        """Whether it is of an adapter that acts in a live model, so that it cannot be streamed."""
        return self is Record.ADAPTER_GRADIENTS

    @property
    def passes(self) -> "Passes":
        """What it takes of a run over the calibration batches."""
        if self in _OF_WEIGHTS:
            return Passes.NONE
        return Passes.FORWARD if self in _OF_INPUTS else Passes.BACKWARD


def parse_record(record: str | Collection[str]) -> frozenset[Record]:
    """Read a request.

    Args:
        record: One name or several.

    Returns:
        What to record.

    Raises:
        InvalidOption: A name is not known.
    """
    names = {record} if isinstance(record, str) else set(record)
    if unknown := sorted(names - set(Record)):
        allowed = ", ".join(repr(str(name)) for name in Record)
        raise InvalidOption(f"record={unknown[0]!r}; allowed are {allowed}")
    return frozenset(map(Record, names))


class Passes(StrEnum):
    """What a method needs of a run over the calibration batches, the least first."""

    NONE = "none"
    """Nothing: it looks at weights alone."""
    FORWARD = "forward"
    """Forward passes: it looks at activations, and no label tells it anything."""
    BACKWARD = "backward"
    """Forward and backward passes: it looks at gradients of the loss."""

    @staticmethod
    def most(of: "Iterable[Passes]") -> "Passes":
        """Say what a run must do for all of several things that are wanted of it.

        Args:
            of: What each of them needs.

        Returns:
            The most of these; ``none`` where nothing is wanted.
        """
        return max(of, key=list(Passes).index, default=Passes.NONE)


# What is known from weights alone, and from weights and inputs; all else is of gradients.
_OF_WEIGHTS = frozenset({Record.WEIGHT_CONDITION})
_OF_INPUTS = frozenset({Record.MOMENTS, Record.INPUT_COMPONENTS, Record.LAYER_SIMILARITY})


class Estimator(StrEnum):
    """How the Fisher information of LoRA-B is estimated."""

    AUTO = "auto"
    """``exact`` where it adds little to a pass over examples of their length, else ``sketched``."""
    EXACT = "exact"
    """Per example, in expectation over the random A: no seed involved."""
    SKETCHED = "sketched"
    """An unbiased sketch of ``exact``, whose cost does not grow with the length of examples."""
    SAMPLED = "sampled"
    """The published code's way: one seeded A, the gradient of a batch squared."""
    BOTH = "both"
    """Both of them, from the same passes."""
    NONE = "none"
    """Nothing is: a run takes no more of the model than what else is recorded needs."""

    @property
    def has_examples(self) -> bool:
        """Whether row and example energies are recorded, as they are or sketched."""
        # Whatever is chosen by itself has them.
        return self not in {Estimator.SAMPLED, Estimator.NONE}

    @property
    def has_sampled(self) -> bool:
        """Whether squared gradients of LoRA-B are recorded."""
        return self in {Estimator.SAMPLED, Estimator.BOTH}

    @property
    def is_drawn(self) -> bool:
        """Whether what is recorded depends on a rank and a seed."""
        return self not in {Estimator.EXACT, Estimator.NONE}

    @property
    def passes(self) -> Passes:
        """What it takes of a run over the calibration batches."""
        return Passes.NONE if self is Estimator.NONE else Passes.BACKWARD


def check_scale(scale: int | float) -> None:
    """Refuse a LoRA scale that no score can be stated for.

    Args:
        scale: The scale, alpha / rank.

    Raises:
        InvalidOption: It is not above 0 and finite.
    """
    if not 0 < scale < math.inf:
        raise InvalidOption(f"scale={scale!r}: it must be a number above 0 and finite")
