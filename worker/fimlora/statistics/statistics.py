"""What one calibration run records per target module: sums that add up over batches.

Everything an aggregation or a budget could ask for is here, so another one costs no second
pass. The sums are numpy arrays in float64: reading and scoring them needs no torch.

Symbols: O output features, R rank of the sampled A, N examples, ``G[n]`` (O I) the gradient
of example n's loss with respect to the weight, ``H[b]`` (O I) that of batch b's loss, ``D[b]``
(O R) the gradient of batch b's loss with respect to LoRA-B at B = 0 and s = 1.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fimlora.errors import InvalidStatistics
from fimlora.left_out import FUSED_EXPERTS
from fimlora.plan import TargetModule
from fimlora.statistics.both_modules import Choice, of_both
from fimlora.statistics.experts import expert_facts
from fimlora.statistics.groups import GROUPS
from fimlora.statistics.options import Estimator, Execution, check_scale

# A spectrum whose leading values may be further off than this is called unresolved.
RESOLVED_ERROR = 0.01
STATISTICS_FORMAT = "fimlora.statistics/1"
# What stands before the names of what was recorded of the null, of the halves and of the rows to
# retain; the last ones may have halves of their own.
NULL, HALVES, RETAIN = "null.", ("half 1.", "half 2."), "retain."
# The kind of the loss where no example was read.
NO_LOSS = "none"
# In float64; matrices that no score is made from in float32.
Arrays = Mapping[str, NDArray[Any]]
Groups = dict[str, dict[str, NDArray[Any]]]  # by field of `Statistics`, and module


@dataclass(frozen=True, eq=False)
class Statistics:
    """The sums of one calibration run, or of several merged ones.

    Attributes:
        modules: The target modules, in the model's order.
        estimator: What was estimated; never ``auto``, and ``none`` where nothing was.
        n_examples: Examples that carried a label.
        n_batches: Batches they came in.
        base_parameters: Parameters of the base model.
        loss: Kind of the loss; ``none`` where weights alone were looked at.
        dtype: Dtype the model ran in.
        scale: LoRA scale s; it enters the scores, not the sums.
        train_mode: Whether dropout was active.
        rank: Rows of the A that was drawn; ``None`` where none was.
        seed: Seed of the A that was drawn; ``None`` where none was.
        row_energies: ``sum_n ||G[n, o, :]||^2`` (O) per module, if exact; unbiased estimates
            of them, if sketched.
        example_energies: ``||G[n]||_F^2`` (N) per module, likewise.
        squared_gradients: ``sum_b D[b]**2`` (O R) per module, if sampled.
        not_targeted: What the choice of targets means but is not one of them, by name, with the
            reason in a sentence: modules, or parameters that hold several matrices.
        auxiliary_losses_left_out: What the model adds to its loss in training and the run
            left out, by the names of the weights in its config.
        input_squares: Sum over tokens of the squared input (I) per module, if recorded.
        token_counts: Tokens in that sum (1), if recorded.
        batch_energies: ``sum_b ||H[b, o, :]||^2`` (O) per module, if recorded.
        spectra: The leading singular values (K) of the mean gradient ``sum_n G[n] / N`` per
            module, falling, if recorded.
        mean_energies: ``||sum_n G[n] / N||_F^2`` (1), if spectra were recorded.
        spectrum_errors: How far off the energy of the leading values may be, as a share of
            it (1), if spectra were recorded; 0 where no sketch was needed.
        quantities: What else was recorded, by the name of its group, as
            `fimlora.statistics.groups` lists them, and of the module.
        estimator_reason: Why it is this estimator, in a sentence; ``None`` where it was asked
            for, or runs that were merged were told different reasons.
        null: The same of the same forward passes under labels of other examples, if that was
            measured; see `fimlora.measuring.examples.null_labels`.
        halves: The same of every other batch, from the first on, and of those between them, if
            they were kept apart and there were two; their sums add up to those here.
        retain: The same of other rows under the same head, whose function is to be kept, if that
            was measured; see `fimlora.measuring.contrast`.
        batch_sizes: Labelled examples of each batch that holds one, in order; empty where that
            is not known.
        null_targets: In the null, how many targets its losses had, and how many of these
            were other ones than in the run.
        no_null: Why there is no null though one was asked for, in a sentence without a stop.
        head: How the last map of a task head was made: plain data with a ``kind`` of ``fitted``,
            ``fresh`` (as drawn) or ``pretrained``; ``None`` where nobody said.
        expert_selection: Which experts were selected to train, and how, as plain data; ``None``
            where all do. See `fimlora.methods.expert_choice`.
        head_weights: The parameters of a fitted map, by name; they are what the model had.
        execution: How this run was carried out; ``None`` for what was merged or read from a
            file. It is no part of the content: equal statistics have equal bytes.
    """

    modules: tuple[TargetModule, ...]
    estimator: Estimator
    n_examples: int
    n_batches: int
    base_parameters: int
    loss: str
    dtype: str
    scale: int | float
    train_mode: bool
    rank: int | None
    seed: int | None
    row_energies: Arrays
    example_energies: Arrays
    squared_gradients: Arrays
    not_targeted: Mapping[str, str] = field(default_factory=dict)
    auxiliary_losses_left_out: tuple[str, ...] = ()
    input_squares: Arrays = field(default_factory=dict)
    token_counts: Arrays = field(default_factory=dict)
    batch_energies: Arrays = field(default_factory=dict)
    spectra: Arrays = field(default_factory=dict)
    mean_energies: Arrays = field(default_factory=dict)
    spectrum_errors: Arrays = field(default_factory=dict)
    quantities: Mapping[str, Arrays] = field(default_factory=dict)
    estimator_reason: str | None = None
    null: "Statistics | None" = None
    halves: "tuple[Statistics, Statistics] | None" = None
    retain: "Statistics | None" = None
    batch_sizes: tuple[int, ...] = ()
    null_targets: tuple[int, int] | None = None
    no_null: str | None = None
    head: Mapping[str, Any] | None = None
    expert_selection: Mapping[str, Any] | None = None
    head_weights: Arrays = field(default_factory=dict)
    execution: Execution | None = field(default=None, compare=False)

    @property
    def parts(self) -> "dict[str, Statistics]":
        """What was measured of null, halves and rows to retain, by what they are called."""
        one, other = self.halves or (None, None)
        found = {NULL: self.null, HALVES[0]: one, HALVES[1]: other, RETAIN: self.retain}
        return {name: part for name, part in found.items() if part is not None}

    @property
    def _all_parts(self) -> "dict[str, Statistics]":
        """Its parts and theirs."""
        return {
            f"{name}{inner}": each
            for name, part in self.parts.items()
            for inner, each in {"": part, **part._all_parts}.items()  # noqa: SLF001
        }

    @property
    def groups(self) -> dict[str, Arrays]:
        """All that was recorded, by group and module."""
        return {**{group: getattr(self, group) for group in _GROUPS}, **self.quantities}

    def holds(self, record: str) -> bool:
        """Whether a quantity was recorded, if it has a group of its own name."""
        return bool(getattr(self, record, None) or self.quantities.get(record))

    def with_parts(self, parts: "Mapping[str, Statistics]") -> "Statistics":
        """The same run with another null, other halves and other rows to retain.

        Args:
            parts: These by what they are called.

        Returns:
            The statistics.
        """
        both = tuple(parts[name] for name in HALVES if name in parts)
        halves = (both[0], both[1]) if len(both) > 1 else None
        return replace(self, null=parts.get(NULL), halves=halves, retain=parts.get(RETAIN))

    def with_retain(self, other: "Statistics") -> "Statistics":
        """Put beside this run one of the rows whose function is to be kept.

        Args:
            other: Statistics of the same model, head and settings over these rows; the seed is
                none of these where what was estimated is not drawn. Of modules
                that only they have reached nothing is kept, as no plan of this run has them;
                those that they have not reached count as zero.

        Returns:
            This run with its ``retain``.

        Raises:
            InvalidStatistics: The two differ in a setting, which the message names.
        """
        # Initial weights may be recorded of this run alone, and a seed is theirs, too.
        is_drawn = self.estimator.is_drawn
        for name in (name for name in _MUST_MATCH if is_drawn or name != "seed"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise InvalidStatistics(
                    f"statistics of the rows to retain differ in {name}: {theirs!r}, and {mine!r} "
                    "here; measure both by the same settings"
                )
        if not _are_equal(self.head_weights, other.head_weights):
            raise InvalidStatistics(
                "the rows to retain were measured under another head; measure both under one"
            )
        reached = other._over((self.modules, self.not_targeted), self)  # noqa: SLF001
        return replace(self, retain=reached._as_part_of(self))  # noqa: SLF001

    def _as_part_of(self, whole: "Statistics") -> "Statistics":
        """The same sums, said to be of a part of another run; its null is left out."""
        held = {g: a for g, a in self.groups.items() if a and g != "head_weights"}
        part = whole.part(held, **{name: getattr(self, name) for name in _COUNTS})
        return part.with_parts(
            {
                name: half._as_part_of(part)  # noqa: SLF001
                for name, half in self.parts.items()
                if name in HALVES
            }
        )

    def rescaled(self, scale: int | float) -> "Statistics":
        """The same sums under another LoRA scale: it enters the scores only.

        Args:
            scale: The scale, alpha / rank.

        Returns:
            Statistics equal to those of a run with that scale.

        Raises:
            InvalidOption: It is not above 0 and finite.
        """  # noqa: DOC502 - `check_scale` raises
        check_scale(scale)
        if self.scale == scale:
            return self
        parts = {name: part.rescaled(scale) for name, part in self.parts.items()}
        return replace(self, scale=scale).with_parts(parts)

    def provenance(self) -> dict[str, Any]:
        """Say what was measured, in facts that are the same on every run.

        Returns:
            Plain data for a rank map.
        """
        facts = {name: value for name, value in self._facts().items() if value is not None}
        facts.pop("not_targeted")  # a rank map has a field of its own for them
        facts.pop("batch_sizes", None)  # it has their number and sum
        if self.spectra:
            facts["unresolved_spectra"] = list(self.unresolved_spectra())
        # Asked first: the sums of an open file that no method needs are not to be read.
        has_experts = any(module.n_experts is not None for module in self.modules)
        if has_experts and (seen := expert_facts(self.modules, self.groups)):
            facts["experts"] = seen
        if self.retain is not None:
            facts["retained"] = {name: getattr(self.retain, name) for name in _TOLD}
        return facts

    def unresolved_spectra(self) -> tuple[str, ...]:
        """Name the modules whose spectrum is too flat for the sketch it was read from.

        Returns:
            Names, in the order of the modules; a larger ``spectra_bytes`` resolves them.
        """
        return tuple(
            module.name
            for module in self.modules
            if module.name in self.spectra
            and self.spectrum_errors[module.name].item() > RESOLVED_ERROR
        )

    def resolved_shares(self) -> dict[str, float]:
        """Say how much of each mean gradient's energy the recorded values hold.

        Returns:
            Share per module name, if spectra were recorded; 0 where there is no energy.
        """
        return {
            name: min(1.0, float(np.square(values).sum()) / energy) if energy else 0.0
            for name, values in self.spectra.items()
            for energy in self.mean_energies[name].tolist()
        }

    def merge(self, other: "Statistics") -> "Statistics":
        """Add the sums of another run over other examples.

        A module that only the other run has reached has zeros here, as in one run over both.

        Args:
            other: Statistics of the same model, targets and settings.

        Returns:
            Statistics of both runs together; this run's examples come first.

        Raises:
            InvalidStatistics: The two differ in a setting, which the message names, or
                hold spectra, as singular values do not add up.
        """
        if self.spectra or other.spectra:
            raise InvalidStatistics(
                "statistics with spectra are not merged, as singular values do not add up; "
                "measure all batches in one run, or merge runs without spectra"
            )
        for name in sorted({*self.quantities, *other.quantities}):
            if not GROUPS[name].adds_up:
                raise InvalidStatistics(
                    f"statistics with {name} are not merged, as these do not add up; measure all "
                    "batches in one run, or merge runs without them"
                )
        self._check_settings(other)
        choice = of_both((self.modules, self.not_targeted), (other.modules, other.not_targeted))
        return self._over(choice, other)._sum(other._over(choice, self))  # noqa: SLF001

    def _check_settings(self, other: "Statistics") -> None:
        for group in ("input_squares", "batch_energies"):
            if bool(getattr(self, group)) != bool(getattr(other, group)):
                raise InvalidStatistics(f"only one of the statistics holds {group}; not merged")
        for group in sorted(self.quantities.keys() ^ other.quantities.keys()):
            raise InvalidStatistics(f"only one of the statistics holds {group}; not merged")
        for name in _MUST_MATCH:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise InvalidStatistics(
                    f"statistics differ in {name}: {mine!r} and {theirs!r}; not merged"
                )
        if not _are_equal(self.head_weights, other.head_weights):
            raise InvalidStatistics(
                "statistics were measured under different heads; not merged"
            )

    def _over(self, choice: Choice, other: "Statistics") -> "Statistics":
        """The same run with zeros for modules of a choice that only another one has reached."""
        modules, not_targeted = choice
        if modules == self.modules:
            return self
        reached = {module.name for module in self.modules}

        def padded(group: str) -> dict[str, NDArray[Any]]:
            arrays = self.groups[group]
            return {
                m.name: arrays[m.name] if m.name in arrays else self._zeros(group, m, other)
                for m in modules
                if arrays and (m.name in arrays or m.name not in reached)
            }

        groups = as_fields({group: padded(group) for group in (*_ADDED, *self.quantities)})
        theirs = other.parts
        parts = {
            name: part._over(choice, theirs.get(name, other))  # noqa: SLF001
            for name, part in self.parts.items()
        }
        whole = replace(self, modules=modules, not_targeted=not_targeted, **groups)
        return whole.with_parts(parts)

    def _zeros(self, group: str, module: TargetModule, other: "Statistics") -> NDArray[Any]:
        """Nothing, in the shape that another run has of a module."""
        if group in self.quantities:  # as many numbers as an adapter has ranks, for one
            return np.zeros_like(other.quantities[group][module.name])
        shapes = {
            "example_energies": (self.n_examples,),
            "squared_gradients": (module.d_out, self.rank or 0),
            "input_squares": (module.d_in,),
            "token_counts": (1,),
        }
        return np.zeros(shapes.get(group, (module.d_out,)))

    def _sum(self, other: "Statistics") -> "Statistics":
        """Add statistics of the same modules and settings."""
        is_agreed = other.estimator_reason in {self.estimator_reason, None}
        merged = replace(
            self,
            execution=None,
            estimator_reason=self.estimator_reason if is_agreed else None,
            n_examples=self.n_examples + other.n_examples,
            n_batches=self.n_batches + other.n_batches,
            batch_sizes=_joined(self.batch_sizes, other.batch_sizes),
            row_energies=_added(self.row_energies, other.row_energies),
            squared_gradients=_added(self.squared_gradients, other.squared_gradients),
            input_squares=_added(self.input_squares, other.input_squares),
            token_counts=_added(self.token_counts, other.token_counts),
            batch_energies=_added(self.batch_energies, other.batch_energies),
            quantities={
                group: _added(arrays, other.quantities[group])
                for group, arrays in self.quantities.items()
            },
            example_energies={
                name: np.concatenate([values, other.example_energies[name]])
                for name, values in self.example_energies.items()
            },
            null_targets=_added_targets(self.null_targets, other.null_targets),
            no_null=self.no_null or other.no_null,
        )
        theirs = other.parts
        # What only one of them has is not known of both together.
        return merged.with_parts(
            {
                name: part._sum(theirs[name])  # noqa: SLF001
                for name, part in self.parts.items()
                if name in theirs
            }
        )

    def save(self, path: str | Path) -> None:
        """Write a safetensors file.

        Args:
            path: Where to; an existing file is replaced in one step.
        """
        _replace_file(Path(path), self.to_bytes())

    def to_bytes(self) -> bytes:
        """The statistics as a safetensors file: same statistics, same bytes."""
        header = {
            "format": STATISTICS_FORMAT,
            **self._facts(),
            "modules": [_row(module) for module in self.modules],
        }
        if parts := self._all_parts:
            header["parts"] = {name: _counts(part) for name, part in parts.items()}
        arrays = {
            f"{prefix}{group}/{name}": np.ascontiguousarray(array)
            for prefix, part in {"": self, **parts}.items()
            for group, by_module in part.groups.items()
            for name, array in by_module.items()
        }
        # One metadata key only: safetensors writes several in a random order.
        return save(arrays, metadata={"fimlora": json.dumps(header, sort_keys=True)})

    @classmethod
    def load(cls, path: str | Path) -> "Statistics":
        """Read what `save` wrote.

        Args:
            path: The file.

        Returns:
            The statistics.

        Raises:
            InvalidStatistics: There is no such file, or it holds something else.
        """  # noqa: DOC502 - `opened` raises
        with cls.opened(path) as stored:
            return stored._in_memory()  # noqa: SLF001

    @classmethod
    @contextmanager
    def opened(cls, path: str | Path) -> Iterator["Statistics"]:
        """Look into what `save` wrote: a sum is read from the file whenever it is looked at.

        What a plan looks at may be a small part of the file, and is needed once and not together.

        Args:
            path: The file.

        Yields:
            The statistics, as long as the block lasts.

        Raises:
            InvalidStatistics: There is no such file, or it holds something else.
        """
        with ExitStack() as stack:
            try:
                file = stack.enter_context(safe_open(Path(path), framework="numpy"))
                stored = cls._of_file(file)
            except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
                raise InvalidStatistics(
                    f"cannot read statistics from {path}: {error}"
                ) from error
            yield stored

    @classmethod
    def _of_file(cls, file: Any) -> "Statistics":
        header = _parsed(file.metadata())
        estimator = Estimator(header.pop("estimator"))
        parts: dict[str, dict[str, Any]] = header.pop("parts", {})
        keys: dict[str, dict[str, str]] = {
            f"{prefix}{group}": {} for prefix in ("", *parts) for group in (*_GROUPS, *GROUPS)
        }
        for key in file.keys():  # noqa: SIM118 - it is no mapping
            group, _, name = key.partition("/")
            if group in keys:
                keys[group][name] = key
        modules = tuple(map(_module, header.pop("modules")))
        header["not_targeted"] = _left_out(header.get("not_targeted", {}))
        auxiliary = header.get("auxiliary_losses_left_out", ())
        header["auxiliary_losses_left_out"] = tuple(auxiliary)

        def stored(prefix: str) -> dict[str, Any]:
            found = {g: _Stored(file, keys[f"{prefix}{g}"]) for g in (*_GROUPS, *GROUPS)}
            return {g: arrays for g, arrays in found.items() if arrays or g in _GROUPS}

        header["batch_sizes"] = tuple(header.get("batch_sizes", ()))

        def with_its_parts(run: Statistics, prefix: str) -> Statistics:
            """Parts of a part are named behind it."""
            names = [n for n in (NULL, *HALVES, RETAIN) if f"{prefix}{n}" in parts]
            found = {
                n: run.part(stored(f"{prefix}{n}"), **_read(parts[f"{prefix}{n}"]))
                for n in names
            }
            return run.with_parts(
                {n: with_its_parts(part, f"{prefix}{n}") for n, part in found.items()}
            )

        whole = cls(modules=modules, estimator=estimator, **header, **as_fields(stored("")))
        return with_its_parts(whole, "")

    def part(self, groups: Mapping[str, Arrays], **counts: Any) -> "Statistics":
        """Statistics of a part of this run, or of the run under other labels.

        Args:
            groups: What was recorded of it, by field.
            **counts: How many examples, batches and other targets it has.

        Returns:
            Statistics that say the same of all else.
        """
        others = {**as_fields({group: {} for group in _GROUPS}), **as_fields(groups)}
        known: dict[str, Any] = {"batch_sizes": ()} | counts
        parts: dict[str, Any] = {"null": None, "halves": None, "retain": None}
        return replace(self, execution=None, **parts, **others, **known)

    def _in_memory(self) -> "Statistics":
        read = replace(
            self, **as_fields({g: dict(arrays) for g, arrays in self.groups.items()})
        )
        parts = {name: part._in_memory() for name, part in self.parts.items()}  # noqa: SLF001
        return read.with_parts(parts)

    def _facts(self) -> dict[str, Any]:
        facts = {name: getattr(self, name) for name in (*_MUST_MATCH, *_COUNTS)}
        facts |= {"estimator": self.estimator.value, "not_targeted": dict(self.not_targeted)}
        facts["batch_sizes"] = list(self.batch_sizes)
        facts["auxiliary_losses_left_out"] = list(self.auxiliary_losses_left_out)
        facts["estimator_reason"] = self.estimator_reason
        facts["no_null"] = self.no_null
        # Most runs have nothing to say here.
        unsaid = [name for name in _SAID_AT_NEED if not facts[name]]
        return {name: value for name, value in facts.items() if name not in unsaid}


_SAID_AT_NEED = (
    "auxiliary_losses_left_out",
    "batch_sizes",
    "estimator_reason",
    "expert_selection",
    "head",
    "no_null",
)
_GROUPS = (
    "row_energies",
    "example_energies",
    "squared_gradients",
    "input_squares",
    "token_counts",
    "batch_energies",
    "spectra",
    "mean_energies",
    "spectrum_errors",
    "head_weights",
)
_ADDED = (
    "row_energies",
    "example_energies",
    "squared_gradients",
    "input_squares",
    "token_counts",
    "batch_energies",
)
_TOLD = ("n_examples", "n_batches")
_COUNTS = (*_TOLD, "batch_sizes")
_PARTS = ("null", "halves", "retain", "null_targets")
_MUST_MATCH = tuple(
    attribute.name
    for attribute in fields(Statistics)
    if attribute.name
    not in {
        "modules",
        "not_targeted",
        "execution",
        "estimator_reason",
        "no_null",
        *_COUNTS,
        *_GROUPS,
        *_PARTS,
        "quantities",
    }
)


class _Stored(Mapping[str, NDArray[Any]]):
    """Sums in an open file, by the name of their module."""

    def __init__(self, file: Any, keys: Mapping[str, str]) -> None:
        self._file, self._keys = file, keys

    def __getitem__(self, name: str) -> NDArray[Any]:
        array: NDArray[Any] = self._file.get_tensor(self._keys[name])
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def as_fields(groups: Mapping[str, Arrays]) -> dict[str, Any]:
    """Put groups where `Statistics` has them: the sums of every run by name, others together.

    Args:
        groups: What was recorded, by group and module.

    Returns:
        Fields of `Statistics`.
    """
    fields_of = {group: arrays for group, arrays in groups.items() if group not in GROUPS}
    return {**fields_of, "quantities": {g: a for g, a in groups.items() if g in GROUPS and a}}


def _are_equal(left: Arrays, right: Arrays) -> bool:
    return left.keys() == right.keys() and all(
        np.array_equal(values, right[name]) for name, values in left.items()
    )


def _added(left: Arrays, right: Arrays) -> dict[str, NDArray[Any]]:
    return {name: values + right[name] for name, values in left.items()}


def _joined(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    """Sizes of the batches of both; unknown where those of one are."""
    return (*left, *right) if left and right else ()


def _added_targets(
    left: tuple[int, int] | None, right: tuple[int, int] | None
) -> tuple[int, int] | None:
    return None if left is None or right is None else (left[0] + right[0], left[1] + right[1])


def _row(module: TargetModule) -> dict[str, Any]:
    """What is known of a module; a linear map has no experts to say anything of, and is no table."""
    row = {name: value for name, value in asdict(module).items() if value is not None}
    if not module.is_embedding:
        del row["is_embedding"]
    return row


def _module(row: Mapping[str, Any]) -> TargetModule:
    """What `_row` wrote."""
    experts = {"experts": tuple(row["experts"])} if "experts" in row else {}
    return TargetModule(**{**row, **experts})


def _counts(part: Statistics) -> dict[str, Any]:
    """How a part differs from the run, but for its sums."""
    targets = {} if part.null_targets is None else {"null_targets": list(part.null_targets)}
    sizes = {"batch_sizes": list(part.batch_sizes)} if part.batch_sizes else {}
    return {**{name: getattr(part, name) for name in _TOLD}, **sizes, **targets}


def _read(counts: Mapping[str, Any]) -> dict[str, Any]:
    """Counts of a part, with its pair of targets as a pair."""
    targets = counts.get("null_targets")
    sizes = tuple(counts.get("batch_sizes", ()))
    null_targets = None if targets is None else tuple(targets)
    return {**counts, "batch_sizes": sizes, "null_targets": null_targets}


def _parsed(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """Our facts from the metadata of a safetensors file."""
    header: dict[str, Any] = json.loads((metadata or {}).get("fimlora", "{}"))
    if header.pop("format", None) != STATISTICS_FORMAT:
        raise ValueError(f"not in format {STATISTICS_FORMAT!r}")
    return header


def _left_out(stored: Mapping[str, str] | list[str]) -> dict[str, str]:
    """Reason by name; some files have names alone, which are all of fused experts."""
    return dict.fromkeys(stored, FUSED_EXPERTS) if isinstance(stored, list) else dict(stored)


def _replace_file(path: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
