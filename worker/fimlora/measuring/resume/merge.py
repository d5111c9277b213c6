"""Sums of some batches of a run, measured by themselves, so that several workers share one run.

Each shard goes through the batches before its own without running them: labels of the null come
from there, and the choice of an estimator. Whoever has all shards adds them up in the order of
the batches and finishes as one run over all would; where the parts of a sum are kept, to the
last bit, else as far as the rounding of another order goes.
"""

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fimlora._version import __version__
from fimlora.errors import InvalidOption, InvalidProgress
from fimlora.measuring.resume.fingerprints import digest_list
from fimlora.measuring.resume.tensor_file import open_tensors, write_tensors
from fimlora.plan import TargetModule

SHARD_FORMAT = "fimlora.shard/1"
# What the sums are not told apart by: how a shard was carried out, and which it was.
_NOT_CONTENT = frozenset(
    {"executor", "micro_batch_size", "first_example", "n_batches", "shard"}
)
PARTS_BYTES = 256 * 2**20
Facts = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Shard:
    """Some batches of a run.

    Attributes:
        start: Batches before them.
        stop: Batches up to the last of them.
        parts_bytes: Memory for what sums are made of, which lets shards add up to the last bit.
    """

    start: int
    stop: int
    parts_bytes: int = PARTS_BYTES

    def __post_init__(self) -> None:
        """Check them."""
        if not 0 <= self.start < self.stop:
            raise InvalidOption(
                f"a shard from batch {self.start} up to {self.stop}: it must hold one batch at least"
            )

    def holds(self, number: int) -> bool:
        """Whether a batch, counted from 0, is one of them."""
        return self.start <= number < self.stop


def split(n_batches: int, n_shards: int) -> tuple[Shard, ...]:
    """Split the batches of a run as evenly as can be.

    Args:
        n_batches: How many there are.
        n_shards: How many parts are wanted; no part is empty, so there may be fewer.

    Returns:
        The shards, in order; the first ones have a batch more where it does not come out even.

    Raises:
        InvalidOption: A number is below 1.
    """
    if min(n_batches, n_shards) < 1:
        raise InvalidOption(
            f"n_batches={n_batches} and n_shards={n_shards} must both be at least 1"
        )
    n = min(n_shards, n_batches)
    size, rest = divmod(n_batches, n)
    bounds = [i * size + min(i, rest) for i in range(n + 1)]
    return tuple(Shard(start, stop) for start, stop in itertools.pairwise(bounds))


@dataclass(frozen=True, eq=False, slots=True)
class ShardSums:
    """What a shard came to.

    Attributes:
        shard: Which batches.
        identity: What the sums depend on, by the name of each part; plain data.
        batches: Digests of the batches up to the last of these.
        sums: By kind and module, as a recorder gives them; those of a file stay in it until they
            are asked for.
        learned: What each recorder has learned of the model; empty where no example has a label.
        largest: Examples that went through the model at once.
        executor: How it was measured.
    """

    shard: Shard
    identity: Mapping[str, Any]
    batches: Sequence[str]
    sums: Mapping[str, Tensor]
    learned: Sequence[Mapping[str, Any]]
    largest: int
    executor: str

    def save(self, path: str | Path) -> None:
        """Write it to a file, in one step.

        Args:
            path: Where to; its folder must exist.
        """
        facts = {
            "format": SHARD_FORMAT,
            "shard": asdict(self.shard),
            "identity": dict(self.identity),
            "batches": [*self.batches],
            "learned": [*self.learned],
            "largest": self.largest,
            "executor": self.executor,
        }
        write_tensors(Path(path), self.sums, facts)

    def sums_of(self, names: Collection[str]) -> dict[str, Tensor]:
        """Give the sums of some modules and layers.

        Args:
            names: Their names.

        Returns:
            Tensors by kind and module.

        Raises:
            InvalidProgress: They were in a file, and are not any more.
        """
        wanted = [key for key in self.sums if key.rpartition("/")[2] in names]
        try:
            return {key: self.sums[key] for key in wanted}
        except (OSError, ValueError) as error:
            raise InvalidProgress(
                f"cannot read the sums of {self.name} any more: {error}; measure them anew",
                batches=(self.shard.start, self.shard.stop),
            ) from error

    @property
    def name(self) -> str:
        """What to call it in an error."""
        return f"the shard of batches {self.shard.start + 1} to {self.shard.stop}"

    @classmethod
    def load(cls, path: str | Path) -> "ShardSums":
        """Read what `save` wrote.

        Args:
            path: The file.

        Returns:
            The sums, which stay in the file.

        Raises:
            InvalidProgress: There is no such file, or it is damaged.
        """
        try:
            sums, facts = _read(Path(path))
            return cls(sums=sums, **{**facts, "shard": Shard(**facts["shard"])})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidProgress(
                f"cannot read a shard's sums from {path}: {error}; measure its batches anew",
                path=Path(path),
            ) from error


def shard_identity(
    model: nn.Module, modules: Sequence[TargetModule], settings: Mapping[str, Any]
) -> Facts:
    """Name what the sums of a shard depend on, whoever measures it and by whatever executor.

    Args:
        model: The model, or its skeleton.
        modules: Its target modules.
        settings: What else they depend on, by the name that users know it by.

    Returns:
        Plain data. The weights are no part of it: whoever hands shards out knows them by a digest.
    """
    return {
        "fimlora version": __version__,
        "target_modules": digest_list(
            f"{m.name} {m.d_in} {m.d_out} {m.n_experts}" for m in modules
        ),
        **{name: value for name, value in settings.items() if name not in _NOT_CONTENT},
        "model class": type(model).__qualname__,
        "dtype": str(next(model.parameters()).dtype),
    }


def in_order(
    shards: Iterable[ShardSums], *, identity: Mapping[str, Any], batches: Sequence[str]
) -> list[ShardSums]:
    """Put shards in order and see that together they are the run at hand.

    Args:
        shards: Its shards.
        identity: What the run's sums depend on.
        batches: Digests of its batches.

    Returns:
        The shards.

    Raises:
        InvalidProgress: One is of another run, or batches are missing or there twice.
    """
    ordered, at = sorted(shards, key=lambda each: each.shard.start), 0
    for each in ordered:
        if each.shard.start != at:
            raise InvalidProgress(
                f"shards do not follow each other: one begins at batch {each.shard.start}, and "
                f"those before it end at {at}"
            )
        _check_same(each, identity, batches)
        at = each.shard.stop
    if at != len(batches):
        raise InvalidProgress(f"shards hold {at} batches, and the run has {len(batches)}")
    return ordered


def _check_same(each: ShardSums, identity: Mapping[str, Any], batches: Sequence[str]) -> None:
    here = {**identity, "batches": [*batches[: each.shard.stop]]}
    there = {**each.identity, "batches": [*each.batches]}
    for name in [*here, *there]:
        if here.get(name) != there.get(name):
            raise InvalidProgress(
                f"{each.name} is of another run: its {name} differs; measure it anew",
                field=name,
                given=there.get(name),
                expected=here.get(name),
                batches=(each.shard.start, each.shard.stop),
            )


def _read(path: Path) -> tuple[Mapping[str, Tensor], Facts]:
    sums, facts = open_tensors(path)
    if facts.pop("format", None) != SHARD_FORMAT:
        raise ValueError(f"not in format {SHARD_FORMAT!r}")
    return sums, facts
