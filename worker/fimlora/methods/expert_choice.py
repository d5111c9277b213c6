"""Which experts of a mixture train: a share of them in each layer, by what was measured of each.

Fused experts have one rank per projection, and PEFT holds an A and a B of each. Those that are not
selected begin with both zero and stay so (`fimlora.adapter.stacked.only_selected`), so a budget in
parameters counts the others. Experts that are modules of their own are targets or not, by name.

Experts are selected per layer, for all its projections together: by the tokens that the router
gave them (as ESFT does, 2407.01906), by their Fisher information, or at random, which is the
control of both and takes as many in each layer. Nothing here imports torch.
"""

import hashlib
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fimlora.errors import InvalidOption
from fimlora.left_out import NOT_SELECTED, UNREACHED
from fimlora.methods.fim import fisher_of_experts, has_fisher
from fimlora.plan import TargetModule
from fimlora.statistics import Statistics
from fimlora.statistics.statistics import as_fields

ROUTED, FISHER, RANDOM = "routed", "fisher", "random"
SELECT = (ROUTED, FISHER, RANDOM)
TOKENS = "expert_tokens"
NO_EXPERT = (
    "no expert is a target, so that none can be selected: give target_parameters for fused "
    "experts, or target_modules that name those which are modules of their own"
)
_NO_FISHER = (
    "no Fisher information is measured, by which experts are to be selected: select at random "
    "with a share, or take method 'fim'"
)
_DIGITS = 6
# An expert that is a module of its own: where all of them are, which one it is, and the rest.
_OWN = re.compile(r"(.*\bexperts)\.(\w+)\.(.+)")


@dataclass(frozen=True, slots=True)
class ExpertChoice:
    """How experts are selected.

    Attributes:
        select: ``routed`` for those with most tokens, ``fisher`` for those with most Fisher
            information, ``random`` for the control.
        share: How many: this share of the experts of each layer, rounded up.
        coverage: In its place: as few as have this share of the layer's tokens, or of its Fisher
            information; ``random`` takes as many as ``routed`` would.
        seed: Seed of ``random``.
        coverage_of: What ``random`` with a coverage takes as many as, in each layer: ``routed``,
            or ``fisher``.
    """

    select: str
    share: int | float | None = None
    coverage: int | float | None = None
    seed: int = 0
    coverage_of: str = ROUTED

    def __post_init__(self) -> None:
        if self.select not in SELECT:
            allowed = ", ".join(map(repr, SELECT))
            raise InvalidOption(f"experts: select={self.select!r}; allowed are {allowed}")
        if (self.share is None) == (self.coverage is None):
            raise InvalidOption(
                "experts: give share, of the experts of each layer, or coverage, of their tokens; "
                "exactly one of both"
            )
        for name in ("share", "coverage"):
            value: Any = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (is_number and 0 < value <= 1):
                raise InvalidOption(f"experts: {name}={value!r}; it must be above 0, at most 1")

    @classmethod
    def of(cls, given: Mapping[str, Any] | None, *, seed: int) -> "ExpertChoice | None":
        """Read a choice as requests have it.

        Args:
            given: ``select`` and ``share`` or ``coverage``, if anything is asked for.
            seed: Seed of the allocation.

        Returns:
            The choice; ``None`` where all experts train.
        """
        return None if given is None else cls(**given, seed=seed)

    @property
    def goes_by(self) -> str | None:
        """What must be recorded of each expert; ``None`` where nothing must."""
        if self.select != RANDOM:
            return self.select
        return None if self.coverage is None else self.coverage_of

    @property
    def control(self) -> "ExpertChoice | None":
        """As many experts in each layer, drawn at random; ``None`` of what is random itself."""
        if self.select == RANDOM:
            return None
        return ExpertChoice(RANDOM, self.share, self.coverage, self.seed, self.select)

    @property
    def facts(self) -> dict[str, Any]:
        """As plain data."""
        seed = self.seed if self.select == RANDOM else None
        as_many = self.coverage_of if seed is not None and self.coverage is not None else ROUTED
        known = {
            "share": self.share,
            "coverage": self.coverage,
            "coverage_of": None if as_many == ROUTED else as_many,
            "seed": seed,
        }
        return {"select": self.select} | {k: v for k, v in known.items() if v is not None}


@dataclass(slots=True)
class _Layer:
    """The experts of one layer: targets by the expert they are of, or fused ones of all."""

    count: int = 0
    fused: list[TargetModule] = field(default_factory=list)
    own: dict[str, list[TargetModule]] = field(default_factory=dict)


def select_experts(
    statistics: Statistics,
    select: str,
    *,
    share: int | float | None = None,
    coverage: int | float | None = None,
    seed: int = 0,
) -> Statistics:
    """Let some experts train, and plan for these alone.

    Args:
        statistics: What `fimlora.measure` returned of a mixture whose experts are targets.
        select: As for `ExpertChoice`.
        share: As there.
        coverage: As there.
        seed: As there.

    Returns:
        The same statistics with the others left out of scores, costs and budgets: of fused
        experts, modules say which ones train; modules of other experts are no targets.

    Raises:
        InvalidOption: No expert is a target, or what they are selected by was not recorded.
    """  # noqa: DOC502 - `with_experts` raises
    return with_experts(statistics, ExpertChoice(select, share, coverage, seed))


def with_experts(statistics: Statistics, choice: ExpertChoice | None) -> Statistics:
    """Do what `select_experts` does, if anything is asked for.

    Args:
        statistics: What was measured.
        choice: How; ``None`` lets all experts train.

    Returns:
        The statistics.

    Raises:
        InvalidOption: As there.
    """
    if choice is None:
        return statistics
    if statistics.expert_selection is not None:
        raise InvalidOption(
            "experts of these statistics are selected already; select from those that were measured"
        )
    layers = _layers(statistics.modules, statistics.not_targeted)
    if not layers:
        raise InvalidOption(NO_EXPERT)
    kept = {place: _chosen(statistics, place, layer, choice) for place, layer in layers.items()}
    modules, left_out = _narrowed(statistics.modules, kept)
    n_all = sum(layer.count for layer in layers.values())
    facts = choice.facts | {"experts": n_all, "selected": sum(map(len, kept.values()))}
    if (covered := _covered(statistics, layers, kept)) is not None:
        facts["tokens"] = covered
    return _with_modules(statistics, modules, left_out, facts)


def experts_by_layer(modules: Iterable[TargetModule]) -> dict[str, tuple[str, ...]]:
    """Name the experts that train.

    Args:
        modules: The target modules.

    Returns:
        Their names, or numbers where they are fused, by where those of a layer are.
    """
    found: dict[str, dict[str, None]] = {}
    for module in modules:
        if module.n_experts is not None:
            place = module.name.rpartition(".")[0]
            trained = range(module.n_experts) if module.experts is None else module.experts
            found.setdefault(place, {}).update(dict.fromkeys(map(str, trained)))
        elif match := _OWN.fullmatch(module.name):
            found.setdefault(match[1], {})[match[2]] = None
    return {place: tuple(names) for place, names in found.items()}


def fisher_of_selected(statistics: Statistics) -> float:
    """Sum the Fisher information of the experts that train, over all of their B.

    Args:
        statistics: What was measured, of all experts or with some selected.

    Returns:
        The sum.

    Raises:
        InvalidOption: It was not measured.
    """  # noqa: DOC502 - `fisher_of_experts` raises
    experts = [m for m in statistics.modules if m.n_experts or _OWN.fullmatch(m.name)]
    return math.fsum(float(fisher_of_experts(statistics, m).sum()) for m in experts)


def check_selectable(
    modules: Sequence[TargetModule], choice: ExpertChoice | None, *, has_fisher: bool = True
) -> None:
    """Refuse a selection that these modules cannot have, before anything is measured.

    Args:
        modules: The target modules.
        choice: How experts are selected.
        has_fisher: Whether Fisher information will be measured.

    Raises:
        InvalidOption: No expert is a target, or what they are to be selected by is never
            recorded of them.
    """
    if choice is None:
        return
    layers = _layers(modules, {})
    if not layers:
        raise InvalidOption(NO_EXPERT)
    if choice.goes_by == FISHER and not has_fisher:
        raise InvalidOption(_NO_FISHER)
    own = next((layer for layer in layers.values() if layer.own), None)
    if choice.goes_by == ROUTED and own is not None:
        raise InvalidOption(_no_tokens_of(own, has_fisher=has_fisher))


def least_and_most(
    modules: Sequence[TargetModule], choice: ExpertChoice | None
) -> list[tuple[list[TargetModule], dict[str, str]]]:
    """Say what a selection may come to before anything was measured.

    Args:
        modules: The target modules.
        choice: How experts are selected.

    Returns:
        Modules that train, with why others do not: once where their number is known, with the
        first experts in place of those that will be selected; where it depends on what is
        measured, once with one expert in each layer and once with all.
    """
    if choice is None:
        return [(list(modules), {})]
    if choice.share is not None:
        return [_first_experts(modules, choice.share)]
    return [_first_experts(modules, share) for share in (0, 1)]


def _first_experts(
    modules: Sequence[TargetModule], share: int | float
) -> tuple[list[TargetModule], dict[str, str]]:
    """The modules of a share of the experts of each layer, one at least."""
    kept = {}
    for place, layer in _layers(modules, {}).items():
        names = [*layer.own] if layer.own else [*map(str, range(layer.count))]
        kept[place] = names[: _n_of(share, layer.count)]
    found, left_out = _narrowed(modules, kept)
    return list(found), left_out


def _layers(
    modules: Collection[TargetModule], not_targeted: Mapping[str, str]
) -> dict[str, _Layer]:
    """The layers that have experts, by where these are."""
    found: dict[str, _Layer] = {}
    for module in modules:
        if module.n_experts is not None:
            layer = found.setdefault(module.name.rpartition(".")[0], _Layer(module.n_experts))
            layer.fused.append(module)
        elif match := _OWN.fullmatch(module.name):
            layer = found.setdefault(match[1], _Layer())
            layer.own.setdefault(match[2], []).append(module)
    unreached: dict[str, set[str]] = {}
    for name, reason in not_targeted.items():
        if reason == UNREACHED and (match := _OWN.fullmatch(name)):
            unreached.setdefault(match[1], set()).add(match[2])
    for place, layer in found.items():
        layer.count = layer.count or len(layer.own.keys() | unreached.get(place, set()))
    return found


def _chosen(
    statistics: Statistics, place: str, layer: _Layer, choice: ExpertChoice
) -> list[str]:
    """The experts of a layer that train, as they are called: by number, where they are fused."""
    names = [*layer.own] if layer.own else [*map(str, range(layer.count))]
    values = None if choice.goes_by is None else _values(statistics, layer, choice.goes_by)
    if choice.coverage is None:
        n = min(len(names), _n_of(float(choice.share or 0), layer.count))
    else:
        assert values is not None
        n = _n_covering(choice.coverage, values)
    if choice.select == RANDOM:
        drawn = [_drawn(choice.seed, place, name) for name in names]
        order = sorted(range(len(names)), key=drawn.__getitem__)
    else:
        assert values is not None
        order = np.argsort(-values, kind="stable").tolist()
    return [names[i] for i in sorted(order[:n])]


def _n_of(share: int | float, count: int) -> int:
    """A share of a number, rounded up but for what is rounding itself."""
    return max(1, min(count, math.ceil(share * count - 1e-9)))


def _n_covering(coverage: int | float, values: NDArray[np.float64]) -> int:
    """How few values, the largest first, have a share of their sum; one where all are zero."""
    total = values.sum()
    if not total > 0:
        return 1
    reached = np.cumsum(np.sort(values)[::-1]) / total
    return min(len(values), int(np.searchsorted(reached, coverage * (1 - 1e-12))) + 1)


def _drawn(seed: int, place: str, name: str) -> bytes:
    """A random number of an expert, from the seed and its name only."""
    return hashlib.sha256(f"experts of {seed}:{place}:{name}".encode()).digest()


def _values(statistics: Statistics, layer: _Layer, select: str) -> NDArray[np.float64]:
    """What the experts of a layer are selected by."""
    if select == FISHER:
        if layer.own:
            return np.array(
                [
                    sum(float(fisher_of_experts(statistics, m).sum()) for m in some)
                    for some in layer.own.values()
                ]
            )
        total: NDArray[np.float64] = np.sum(
            [fisher_of_experts(statistics, m) for m in layer.fused], axis=0
        )
        return total
    if layer.own:
        raise InvalidOption(_no_tokens_of(layer, has_fisher=has_fisher(statistics)))
    tokens = _tokens(statistics, layer)
    if tokens is None:
        raise InvalidOption(
            f"the tokens of the experts of {layer.fused[0].name!r} were not counted: measure anew, "
            f"or {_instead(has_fisher=has_fisher(statistics))}"
        )
    return tokens


def _no_tokens_of(layer: _Layer, *, has_fisher: bool) -> str:
    """Why experts that are modules of their own cannot be selected by tokens."""
    name = next(iter(layer.own.values()))[0].name
    return (
        f"tokens are counted of fused experts, and {name!r} is of experts that are modules of "
        f"their own: {_instead(has_fisher=has_fisher)}"
    )


def _instead(*, has_fisher: bool) -> str:
    """What experts can be selected by where no tokens are counted."""
    if has_fisher:
        return "select by 'fisher', or take 'random' with a share"
    return "take 'random' with a share, or calibrate with method 'fim' and select by 'fisher'"


def _tokens(statistics: Statistics, layer: _Layer) -> NDArray[np.float64] | None:
    counts = statistics.quantities.get(TOKENS, {})
    found = next((counts[m.name] for m in layer.fused if m.name in counts), None)
    return None if found is None else np.asarray(found, dtype=np.float64)


def _narrowed(
    modules: Sequence[TargetModule], kept: Mapping[str, Sequence[str]]
) -> tuple[tuple[TargetModule, ...], dict[str, str]]:
    """The modules that train, and why others do not."""
    found: list[TargetModule] = []
    left_out: dict[str, str] = {}
    for module in modules:
        place = module.name.rpartition(".")[0]
        if module.n_experts is not None:
            found.append(replace(module, experts=tuple(map(int, kept[place]))))
        elif (match := _OWN.fullmatch(module.name)) and match[2] not in kept[match[1]]:
            left_out[module.name] = NOT_SELECTED
        else:
            found.append(module)
    return tuple(found), left_out


def _covered(
    statistics: Statistics, layers: Mapping[str, _Layer], kept: Mapping[str, Sequence[str]]
) -> float | None:
    """The share of the routed tokens that selected experts see, if that is known of all."""
    sums = [
        (tokens[[*map(int, kept[place])]].sum(), tokens.sum())
        for place, layer in layers.items()
        if (tokens := _tokens(statistics, layer)) is not None
    ]
    whole = sum(of_all for _, of_all in sums)
    if len(sums) < len(layers) or not whole:
        return None
    return round(float(sum(some for some, _ in sums) / whole), _DIGITS)


def _with_modules(
    statistics: Statistics,
    modules: tuple[TargetModule, ...],
    left_out: Mapping[str, str],
    facts: Mapping[str, Any],
) -> Statistics:
    """The same run, its null, halves and rows to retain, of these modules."""
    parts = {
        name: _with_modules(part, modules, left_out, facts)
        for name, part in statistics.parts.items()
    }
    held = {group: arrays for group, arrays in statistics.groups.items() if arrays}
    groups = {group: _Without(arrays, left_out) for group, arrays in held.items()}
    whole = replace(
        statistics,
        modules=modules,
        not_targeted={**statistics.not_targeted, **left_out},
        expert_selection=facts,
        **(as_fields(groups) if left_out else {}),
    )
    return whole.with_parts(parts)


class _Without(Mapping[str, NDArray[Any]]):
    """What was recorded but for some modules; of an open file nothing is read for that."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]], left_out: Mapping[str, str]) -> None:
        self._arrays = arrays
        self._names = [name for name in arrays if name not in left_out]
        self._kept = frozenset(self._names)

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._kept:
            raise KeyError(name)
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
