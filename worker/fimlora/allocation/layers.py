"""The layers of a model, and which of them the rule ``layers`` chooses.

A layer is a block of one of the model's repeated lists, named as `TargetModule.block` says; its
score is the sum of those of its target modules, unless it has one of its own. A module outside
of all blocks is in no layer and gets nothing. What is shared over the chosen layers is in
`fimlora.allocation.over_layers`. Nothing here imports torch.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from fractions import Fraction
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fimlora.allocation.listed import Listed
from fimlora.allocation.units import Floats, exact_sums
from fimlora.errors import InvalidOption, InvalidScore
from fimlora.plan import TargetModule, place_of

_LARGE = 2.0**900  # no sum of as many as any model has of lower scores overflows
_DIGITS = re.compile(r"(\d+)")
Places = NDArray[np.intp]
Value = TypeVar("Value")


class Layers:
    """Which modules are in which layer.

    Args:
        modules: The target modules.

    Attributes:
        names: Names of the modules.
        blocks: The layers by the names of their blocks, first layer first.
        of: Number of each module's layer; that of no layer is one more than the last.
    """

    def __init__(self, modules: Iterable[TargetModule]) -> None:
        listed = Listed.of(modules)
        self.names = listed.names
        self.of, self.blocks = _blocks_by_kind(listed) or _blocks_by_name(listed)

    @cached_property
    def encoded(self) -> list[bytes]:
        """The blocks' names as bytes, as digests are made of."""
        return [block.encode() for block in self.blocks]

    def __len__(self) -> int:
        return len(self.blocks)

    def numbered(self, chosen: Collection[str]) -> list[int]:
        """Numbers of the layers of some blocks, rising."""
        return [number for number, block in enumerate(self.blocks) if block in chosen]

    def inside(self, numbers: Sequence[int]) -> Places:
        """Find the modules of some layers.

        Args:
            numbers: Numbers of the layers.

        Returns:
            Places of the modules, rising.
        """
        is_chosen = np.zeros(len(self) + 1, dtype=bool)
        is_chosen[list(numbers)] = True
        return np.flatnonzero(is_chosen[self.of])

    def sorted_in(self, values: Sequence[Value]) -> list[list[Value]]:
        """Sort what there is of each module into layers.

        Args:
            values: It, in the order of the modules.

        Returns:
            That of the modules of each layer, in their order.
        """
        order = np.argsort(self.of, kind="stable").tolist()
        ends = np.cumsum(np.bincount(self.of, minlength=len(self) + 1)).tolist()
        found = [values[place] for place in order]
        return [found[a:b] for a, b in pairwise([0, *ends[:-1]])]


def _blocks_by_name(listed: Listed) -> tuple[Places, list[str]]:
    """Number the blocks by a look at every name.

    Returns:
        Number of each module's block, one more than the last where it is in none; and the
        blocks' names, first block first.
    """
    found = [place_of(name)[1] for name in listed.names]
    blocks = sorted({block for block in found if block is not None}, key=_depth)
    number: dict[str | None, int] = {block: i for i, block in enumerate(blocks)}
    number[None] = len(blocks)
    return np.array([*map(number.__getitem__, found)], dtype=np.intp), blocks


def _blocks_by_kind(listed: Listed) -> tuple[Places, list[str]] | None:
    """Do what `_blocks_by_name` does by a look at one name of each kind.

    Returns:
        As there; ``None`` where blocks are in several lists, or kinds do not tell names apart.
    """
    kinds = listed.naming.kinds
    firsts = np.unique(kinds.of, return_index=True)[1].tolist()
    examples = [place_of(listed.names[first])[1] for first in firsts]
    stacks = {block.rpartition(".")[0] for block in examples if block is not None}
    if len(stacks) != 1 or not kinds.are_told:
        return None
    is_inside = np.array([block is not None for block in examples])[kinds.of]
    indices, numbers = np.unique(kinds.depth[0][is_inside], return_inverse=True)
    found = np.full(len(listed), len(indices), dtype=np.intp)
    found[is_inside] = numbers
    stack = stacks.pop()
    return found, [f"{stack}.{int(index)}" for index in indices.tolist()]


def choose_layers(
    layers: Layers,
    values: Mapping[str, float],
    by_layer: Mapping[str, float],
    n_layers: int | None = None,
) -> frozenset[str]:
    """Choose the layers of highest score; of equal ones the first.

    Args:
        layers: The layers, and the modules in them.
        values: Score per module name.
        by_layer: Score per layer, if layers have scores of their own.
        n_layers: How many; half of them by default, and at least one.

    Returns:
        Names of their blocks.

    Raises:
        InvalidOption: There is no layer, or there are fewer than asked for; or layers have
            scores of their own, and one has none.
    """
    if not layers:
        raise InvalidOption(
            "rule 'layers' chooses among blocks, and no target module is inside one; take "
            "another method, or name other target_modules"
        )
    n = max(1, len(layers) // 2) if n_layers is None else n_layers
    if type(n) is not int or not 1 <= n <= len(layers):
        raise InvalidOption(
            f"n_layers={n!r}: it must be an integer from 1 to {len(layers)}, the number of "
            "layers with target modules"
        )
    if by_layer and (odd := sorted({*layers.blocks} - by_layer.keys())):
        raise InvalidOption(f"layer {odd[0]!r} has target modules and no score")
    for block, score in by_layer.items():
        _check(block, score)
    if by_layer:
        return frozenset(sorted(layers.blocks, key=lambda block: -by_layer[block])[:n])
    rounded, exact = _sums(layers, values)
    order: list[int] = np.argsort(-rounded, kind="stable").tolist()
    if exact:
        order.sort(key=lambda number: (-rounded[number], -exact.get(number, 0)))
    return frozenset(layers.blocks[number] for number in order[:n])


def n_layers_of(modules: Iterable[TargetModule], ranks: Mapping[str, int]) -> int:
    """Count the layers that ranks are in.

    Args:
        modules: The target modules.
        ranks: Rank per module name.

    Returns:
        Their number.
    """
    return len({module.block for module in modules if ranks[module.name]} - {None})


def _sums(layers: Layers, values: Mapping[str, float]) -> tuple[Floats, dict[int, Fraction]]:
    """Score of each layer, rounded once, and exactly where that rounds two layers to one score.

    A sum that is rounded correctly is never less than that of a lower score.

    Returns:
        The scores in the order of the blocks, and by the numbers of these.
    """
    claims = np.array([*map(values.__getitem__, layers.names)], dtype=np.float64)
    if not np.all((claims >= 0) & (claims < math.inf)):
        for name in layers.names:
            _check(name, values[name])
    order, sizes = np.argsort(layers.of, kind="stable"), np.bincount(layers.of)[: len(layers)]
    starts, rounded = np.cumsum(sizes) - sizes, np.empty(len(layers))
    for size in np.unique(sizes).tolist():
        some = np.flatnonzero(sizes == size)
        rounded[some] = _rounded_sums(claims[order[starts[some][:, None] + np.arange(size)]])
    found, n_of = np.unique(rounded, return_counts=True)
    tied = np.flatnonzero(np.isin(rounded, found[n_of > 1])).tolist()
    parts = (claims[order[starts[i] : starts[i] + sizes[i]]].tolist() for i in tied)
    sums = (sum(map(Fraction, part), Fraction(0)) for part in parts)
    return rounded, dict(zip(tied, sums, strict=True))


def _rounded_sums(rows: Floats) -> Floats:
    """The correctly rounded sum of each row; of what is near the largest float, one by one."""
    if rows.max(initial=0.0) > _LARGE:
        return np.array([*map(_rounded_sum, rows.tolist())])
    return exact_sums(rows)


def _rounded_sum(values: Iterable[float]) -> float:
    try:
        return math.fsum(values)
    except OverflowError:
        return math.inf


def _check(name: str, score: float) -> None:
    """Refuse what is no score.

    Raises:
        InvalidScore: It is NaN, infinite or negative.
    """
    if not 0 <= score < math.inf:
        raise InvalidScore(f"the score of {name!r} is {score!r}: it must be finite, at least 0")


def _depth(block: str) -> tuple[str | int, ...]:
    """What blocks are sorted by: texts and numbers take turns, so that they compare."""
    stack, _, index = block.rpartition(".")
    return *_parts_of(f"{stack}."), int(index)


@lru_cache(maxsize=1024)  # a model has many blocks and few lists of them
def _parts_of(text: str) -> tuple[str | int, ...]:
    return tuple(int(part) if i % 2 else part for i, part in enumerate(_DIGITS.split(text)))
