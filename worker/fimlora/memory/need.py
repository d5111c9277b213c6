"""How much memory a resident model needs, from headers and shapes alone.

A rough upper estimate: it decides where to begin, and running out of memory corrects it.
What is recorded on request is known to the byte. Nothing here imports torch, so a service can
tell beforehand what a worker will need.

Symbols: Y, Z, Omega, Psi, P and Q as in `fimlora.measuring.recording.singular_values`.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from fimlora.plan import TargetModule
from fimlora.statistics.groups import N_DIRECTIONS
from fimlora.statistics.options import Passes, Record, parse_record

# What is read of the mean gradients, which are summed once; and what needs these whole.
GRADIENT_RECORDS = frozenset(
    {
        Record.SPECTRA,
        Record.WEIGHT_GRADIENT,
        Record.WHITENED_SPECTRA,
        Record.GRADIENT_FACTORS,
    }
)
WHOLE_GRADIENT_RECORDS = frozenset({Record.WEIGHT_GRADIENT})
# What keeps as much for each weight, and no mean gradient.
WHOLE_RECORDS = WHOLE_GRADIENT_RECORDS | {Record.PARAMETER_FISHER}
# What needs the second moments of inputs, which are summed once too.
MOMENT_RECORDS = frozenset({Record.MOMENTS, Record.WHITENED_SPECTRA})

# Singular values kept per module: as many ranks can be told apart.
N_VALUES = 64
# Principal components kept per module; what they are updated by at most, in rows of inputs.
N_COMPONENTS, COMPONENT_ROWS = N_DIRECTIONS, 1024
# P; four times the values kept, as values near P drown in the tail.
SKETCH_WIDTH = 4 * N_VALUES
# Memory for mean gradients; above it they are sketched. A pass needs as much again, for
# what it adds to them.
SPECTRA_BYTES = 2**30
_PSI_WIDTH = 2 * SKETCH_WIDTH + 1  # Q
# Bytes of a number in a sum, at least, and of one in a sum of squares.
_LEAST_BYTES, _MOMENT_BYTES = 4, 8
# Of A, of B and of a gate.
_PER_RANK_BYTES = 3 * 8
# The allocator's rounding, kernels' workspaces, and what else a process holds.
_MARGIN = 1.05
# Linear maps whose inputs and outputs are there at once on the way forward: the two halves of a
# gated layer and what they are multiplied to, or query, key and value, and the logits.
_MAPS_AT_ONCE = 4
# Names may come from anybody's file: a number of any length could not be read as one.
_EXPERT = re.compile(r"\.experts\.([0-9]{1,9})\.")


def sketch_is_smaller(module: TargetModule, *, width: int = SKETCH_WIDTH) -> bool:
    """Compare the entries of Y and Z with those of the gradient.

    Returns:
        Whether a sketch saves memory for a module of this size.
    """
    long, short = max(module.d_in, module.d_out), min(module.d_in, module.d_out)
    return width * long + (2 * width + 1) * short < long * short


def gradients_fit(modules: Iterable[TargetModule], spectra_bytes: int) -> bool:
    """Compare the memory for the gradients of all modules with what it may be.

    Returns:
        Whether none needs to be sketched.
    """
    return whole_gradient_bytes(modules) <= spectra_bytes


def whole_gradient_bytes(modules: Iterable[TargetModule]) -> int:
    """Count the memory for the gradients of all modules, whole.

    Returns:
        Bytes of one sum; a pass needs as much again.
    """
    return _LEAST_BYTES * sum(m.n_weights for m in modules)


def gradients_of_parts(record: Collection[Record]) -> bool:
    """Whether the null and the halves need gradients, too: initial weights are made of none.

    Returns:
        Whether anything but directions is read of them.
    """
    return bool(GRADIENT_RECORDS - {Record.GRADIENT_FACTORS} & frozenset(record))


@runtime_checkable
class Stored(Protocol):
    """What counts of a checkpoint's tensor: its shape, bytes and dtype."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sides."""

    @property
    def n_bytes(self) -> int:
        """Bytes in the file."""

    @property
    def dtype(self) -> Any:
        """Something that knows the ``itemsize`` of a number."""


@dataclass(frozen=True)
class MemoryNeed:
    """What a model needs where it runs.

    Attributes:
        weight_bytes: All of its weights.
        example_bytes: What a pass through one example keeps, roughly.
        converted_bytes: Those of the weights that are stored in another width, and so pass
            through host memory on their way to a device; others come from the file as it is.
        recorded_bytes: What is recorded on request, whatever the number of examples.
    """

    weight_bytes: int
    example_bytes: int
    converted_bytes: int = 0
    recorded_bytes: int = 0

    @property
    def least(self) -> int:
        """Bytes without which not even one example can run."""
        return round(_MARGIN * (self.weight_bytes + self.recorded_bytes + self.example_bytes))

    def fits(self, free_bytes: int | None) -> bool:
        """Compare with what there is.

        Args:
            free_bytes: Memory that is left; ``None`` where nobody says.

        Returns:
            Whether it is enough, as far as one knows.
        """
        return free_bytes is None or self.least <= free_bytes

    def examples_within(self, free_bytes: int | None, wanted: int) -> int:
        """Say how many examples may run at once.

        Args:
            free_bytes: Memory that is left; ``None`` where nobody says.
            wanted: As many as there are, or were asked for.

        Returns:
            That many, or as many as seem to fit; never less than one.
        """
        if free_bytes is None or not self.example_bytes:
            return wanted
        for_examples = free_bytes / _MARGIN - self.weight_bytes - self.recorded_bytes
        return max(1, min(wanted, int(for_examples // self.example_bytes)))


def estimate_need(
    tensors: Mapping[str, Stored],
    *,
    itemsize: int,
    n_tokens: int,
    experts_per_token: int = 1,
    recorded_bytes: int = 0,
    passes: Passes = Passes.BACKWARD,
) -> MemoryNeed:
    """Estimate the need of a model from its checkpoint.

    A backward pass keeps about the input and the output of every linear map: the maps
    between them are the ones whose derivative needs them. A run that goes forward only keeps
    about those of a few maps at a time, and of one that reads no example there is nothing.

    Args:
        tensors: The checkpoint's tensors.
        itemsize: Bytes per number in the dtype it will run in.
        n_tokens: Tokens of the longest example.
        experts_per_token: How many of a mixture's experts a token goes through.
        recorded_bytes: What else is recorded, as `bytes_recorded` says.
        passes: How far the run goes.

    Returns:
        The need.
    """
    n_weights = n_converted = 0
    by_map: list[int] = []
    for name, tensor in tensors.items():
        n = tensor.n_bytes // tensor.dtype.itemsize
        n_weights += n
        n_converted += n if tensor.dtype.itemsize != itemsize else 0
        by_map.append(features(name, tensor.shape, experts_per_token))
    n_features = features_at_once(by_map, passes)
    return MemoryNeed(
        n_weights * itemsize,
        n_features * n_tokens * itemsize,
        n_converted * itemsize,
        recorded_bytes,
    )


def features(name: str, shape: tuple[int, ...], experts_per_token: int = 1) -> int:
    """Count the numbers per token that go into a linear map and come out of it.

    Args:
        name: The name of its weight in the checkpoint.
        shape: The shape of its weight.
        experts_per_token: How many of a mixture's experts a token goes through.

    Returns:
        Their number; 0 for what is no linear map, and for experts that no token need visit.
    """
    expert = _EXPERT.search(name)
    if len(shape) < 2 or (expert and int(expert[1]) >= experts_per_token):
        return 0
    return sum(shape[-2:]) * (experts_per_token if len(shape) == 3 else 1)


def features_at_once(by_map: Collection[int], passes: Passes) -> int:
    """Count the numbers per token that a run holds at once.

    Args:
        by_map: Numbers that go into each linear map and come out of it, as `features` says.
        passes: How far the run goes.

    Returns:
        All of them for a backward pass, a few of the largest maps' for a forward pass.
    """
    if passes is Passes.NONE:
        return 0
    held = sorted(by_map, reverse=True)
    return sum(held if passes is Passes.BACKWARD else held[:_MAPS_AT_ONCE])


def bytes_recorded(
    modules: Sequence[TargetModule],
    record: str | Collection[str],
    *,
    at_once: Sequence[TargetModule] | None = None,
    spectra_bytes: int = SPECTRA_BYTES,
    itemsize: int = _LEAST_BYTES,
    null: bool = False,
    halves: bool = False,
    adapter_ranks: Mapping[str, int] | None = None,
    n_components: int = N_COMPONENTS,
) -> int:
    """Count what is recorded on request: sums, and as much again that a pass adds to them.

    A null has as many of both; of halves, one is kept apart. What there is one of per example is
    not counted: its energies, and hidden states around layers, which are in host memory.

    Args:
        modules: The target modules.
        record: As for `fimlora.measure`.
        at_once: Those of them that are measured at once, as of one block; all by default.
        spectra_bytes: As for `fimlora.measure`.
        itemsize: Bytes per number of a sum; at least 4, whatever the model runs in.
        null: As for `fimlora.Settings`.
        halves: As for `fimlora.Settings`.
        adapter_ranks: Rank of the adapter that acts by module name, where its gradients are
            recorded.
        n_components: As for `fimlora.Settings`.

    Returns:
        Bytes while the second pass is under way and later.
    """
    wanted, width = parse_record(record), max(itemsize, _LEAST_BYTES)
    held, n_bytes = modules if at_once is None else at_once, 0
    n_of_batch = 4 if null else 2
    n_sums = n_of_batch + halves
    if wanted & MOMENT_RECORDS:
        n_bytes += n_sums * sum(_MOMENT_BYTES * (m.d_in + 1) for m in held)
    if Record.BATCH_ENERGIES in wanted:  # the whole gradients, of a batch in several passes
        n_bytes += n_of_batch * sum(width * m.n_weights for m in held)
    if Record.PARAMETER_FISHER in wanted:
        n_bytes += n_sums * sum(width * m.n_weights for m in held)
    if Record.ADAPTER_GRADIENTS in wanted:
        assert adapter_ranks is not None, "gradients of an adapter are as many as its ranks"
        n_bytes += n_sums * sum(_PER_RANK_BYTES * adapter_ranks[m.name] for m in held)
    if wanted & GRADIENT_RECORDS:  # it is decided once, for all modules, whether to sketch
        whole = bool(wanted & WHOLE_GRADIENT_RECORDS) or gradients_fit(modules, spectra_bytes)
        times = n_sums if gradients_of_parts(wanted) else 2
        n_bytes += width * _numbers_for_spectra(held, times, whole=whole)
    if Record.PROJECTED_GRADIENT in wanted:  # never of parts; the A is held, too
        n_bytes += N_DIRECTIONS * sum(_LEAST_BYTES * m.d_in + 2 * width * m.d_out for m in held)
    if Record.INPUT_COMPONENTS in wanted:  # no label moves them
        n_bytes += _bytes_for_components(held, n_components, width, n_parts=1 + halves)
    return n_bytes


def _bytes_for_components(
    modules: Iterable[TargetModule], n_components: int, width: int, *, n_parts: int
) -> int:
    """Count those of the run and of both halves, those that a pass replaces, and waiting rows.

    Modules with one input hold them once, and no shape tells which have: each is counted.

    Returns:
        Bytes.
    """
    n_held = (1 if n_parts == 1 else 3) + n_parts
    n_bytes = 0
    for module in modules:
        k, mean_and_values = min(n_components, module.d_in), module.d_in + 2
        of_one = _LEAST_BYTES * k * module.d_in + _MOMENT_BYTES * (k + mean_and_values)
        n_bytes += n_held * of_one + n_parts * width * COMPONENT_ROWS * module.d_in
    return n_bytes


def _numbers_for_spectra(modules: Iterable[TargetModule], times: int, *, whole: bool) -> int:
    """Count those of the sums, so many times, and the signs that sketches of one size share."""
    signs: set[tuple[int, int]] = set()
    n_sums = 0
    for module in modules:
        if whole or not sketch_is_smaller(module):
            n_sums += module.n_weights
            continue
        short, long = sorted((module.d_in, module.d_out))
        n_sums += module.n_matrices * (long * SKETCH_WIDTH + _PSI_WIDTH * short)  # Y and Z
        signs |= {(short, SKETCH_WIDTH), (long, _PSI_WIDTH)}
    return times * n_sums + sum(rows * columns for rows, columns in signs)
