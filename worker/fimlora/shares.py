"""Where a plan's ranks and parameters lie, by type, depth and family, beside uniform ranks.

A type is what a module is, whatever its layer; a depth is one of up to four ranges of layers of
equal length; families are those of a model of several towers or kinds of mixer. Nothing here
imports torch.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

OUTSIDE = "outside the blocks"
_BANDS = 4
_DIGITS = 4
_INNER_INDEX = re.compile(r"(?<![^.])\d+(?![^.])")  # of an expert, in a kind


@runtime_checkable
class Module(Protocol):
    """What is looked at of a module."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def cost(self) -> int:
        """Parameters of one rank."""

    @property
    def layer(self) -> int | None:
        """Its block's index."""

    @property
    def kind(self) -> str:
        """What it is inside its block."""

    @property
    def family(self) -> str | None:
        """What it is part of, in a model of several towers or kinds of mixer."""


def type_name(kind: str) -> str:
    """Say what a module is, for an expert whatever its number.

    Args:
        kind: What it is inside its block.

    Returns:
        Such as ``self_attn.q_proj`` or ``mlp.experts.*.up_proj``.
    """
    return _INNER_INDEX.sub("*", kind)


def shares_of(
    modules: Sequence[Module],
    ranks: Mapping[str, int],
    uniform: Mapping[str, int] | None,
    *,
    scores: Mapping[str, float] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Sum up by type, by depth and, where a model has several, by family.

    Args:
        modules: The target modules.
        ranks: Rank per module name.
        uniform: The same of uniform ranks, if there are such.
        scores: Score per module name, of which families have their share too.

    Returns:
        A row for each type, depth and family, in the model's order: how many modules, their ranks
        and parameters, their shares of all, and the shares that uniform ranks give them.
    """
    types = {m.name: OUTSIDE if m.layer is None else type_name(m.kind) for m in modules}
    found = {
        "types": _rows(modules, types, ranks, uniform),
        "depths": _rows(modules, _depths(modules), ranks, uniform),
    }
    families = {m.name: m.family for m in modules if m.family is not None}
    if len(families) == len(modules):
        rows = _rows(modules, families, ranks, uniform)
        found["families"] = [
            row | _share_of_scores(row["name"], families, scores) for row in rows
        ]
    return found


def _share_of_scores(
    family: str, families: Mapping[str, str], scores: Mapping[str, float] | None
) -> dict[str, float | None]:
    whole = math.fsum((scores or {}).get(name, 0.0) for name in families)
    own = math.fsum((scores or {}).get(n, 0.0) for n, f in families.items() if f == family)
    return {"share_of_scores": round(own / whole, _DIGITS) if whole else None}


def _depths(modules: Sequence[Module]) -> dict[str, str]:
    """Range of layers by module name; towers of a model have ranges of their own."""
    layers: dict[str, set[int]] = {}
    place: dict[str, tuple[str, int]] = {}
    for module in modules:
        if module.layer is not None:
            stack = module.name[: -len(module.kind) - len(f".{module.layer}.")]
            layers.setdefault(stack, set()).add(module.layer)
            place[module.name] = stack, module.layer
    names = {
        (stack, layer): name if len(layers) == 1 else f"{stack}.{name}"
        for stack, found in layers.items()
        for layer, name in _bands(sorted(found)).items()
    }
    return {m.name: names[place[m.name]] if m.name in place else OUTSIDE for m in modules}


def _bands(layers: Sequence[int]) -> dict[int, str]:
    """Name of the range that each layer is in."""
    n = min(_BANDS, len(layers))
    ends = [len(layers) * i // n for i in range(n + 1)]
    found = {}
    for start, end in pairwise(ends):
        some = layers[start:end]
        name = str(some[0]) if len(some) == 1 else f"{some[0]}-{some[-1]}"
        found.update(dict.fromkeys(some, name))
    return found


def _rows(
    modules: Sequence[Module],
    labels: Mapping[str, str],
    ranks: Mapping[str, int],
    uniform: Mapping[str, int] | None,
) -> list[dict[str, Any]]:
    members: dict[str, list[Module]] = {}
    for module in modules:
        members.setdefault(labels[module.name], []).append(module)
    whole = _spent(modules, ranks)
    even = None if uniform is None else _spent(modules, uniform)
    rows = []
    for label, some in members.items():
        own = _spent(some, ranks)
        shares = _shares(own, whole)
        beside = (None, None) if even is None else _shares(_spent(some, uniform or {}), even)
        rows.append(
            {
                "name": label,
                "modules": len(some),
                "ranks": own[0],
                "parameters": own[1],
                "share_of_ranks": shares[0],
                "share_of_parameters": shares[1],
                "uniform_share_of_ranks": beside[0],
                "uniform_share_of_parameters": beside[1],
            }
        )
    return rows


def _spent(modules: Iterable[Module], ranks: Mapping[str, int]) -> tuple[int, int]:
    pairs = [(ranks[m.name], m.cost) for m in modules]
    return sum(rank for rank, _ in pairs), sum(rank * cost for rank, cost in pairs)


def _shares(own: tuple[int, int], whole: tuple[int, int]) -> tuple[float, float]:
    return round(own[0] / max(1, whole[0]), _DIGITS), round(own[1] / max(1, whole[1]), _DIGITS)
