"""From scores and a budget to a plan: bounds, units, the rule, and two controls.

Torch-free, so that a service can solve a plan anew from stored statistics.
"""

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from typing import Any, Protocol, runtime_checkable

from fimlora.budgets import budget_limit, explain
from fimlora.errors import InfeasibleBudget, InvalidOption, InvalidScore
from fimlora.marginal_gain import (
    Spectra,
    captured_energies,
    check_spectra,
    highest_known_rank,
    share_by_gain,
)
from fimlora.plan import Budget, RankPlan, TargetModule
from fimlora.waterfilling import allocate_ranks, gather_units, share_limit

__all__ = ["RULES", "Measured", "allocate", "allocate_ranks"]

RULES = ("proportional", "spectral", "uniform", "random")


@runtime_checkable
class Measured(Protocol):
    """What `allocate` reads from measured statistics."""

    @property
    def modules(self) -> tuple[TargetModule, ...]:
        """The target modules, in the model's order."""

    @property
    def base_parameters(self) -> int:
        """Parameters of the base model."""

    @property
    def spectra(self) -> Mapping[str, Any]:
        """Singular values of the mean gradient per module name; empty if not recorded."""

    def scores(self, aggregation: str = "mean") -> Mapping[str, float]:
        """Score per module name."""

    def provenance(self) -> Mapping[str, Any]:
        """Facts about the measurement."""


def allocate(
    scores: Mapping[str, float] | Spectra | Measured,
    modules: Sequence[TargetModule] | None = None,
    budget: int | float | Budget = 8,
    *,
    rule: str = "proportional",
    r_min: int | None = None,
    r_max: int | None = None,
    multiple_of: int = 1,
    groups: Iterable[Collection[str]] = (),
    scale: int | float = 2,
    seed: int = 0,
    aggregation: str = "mean",
    base_parameters: int | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> RankPlan:
    """Turn scores and a budget into the rank of every target module.

    Args:
        scores: Score per module name, or the statistics to take scores from. For the rule
            ``spectral`` singular values per module name, or statistics that hold spectra.
        modules: The target modules; taken from the statistics when those are given.
        budget: A mean rank, or a `Budget` in any unit.
        rule: ``proportional`` shares by score, ``uniform`` and ``random`` are the controls.
            ``spectral`` goes by marginal gain and is experimental: it is not shown to beat
            ``uniform``. Its plan's scores are the energy that the ranks capture.
        r_min: Lowest rank; half the mean rank (at least 1) by default. A module smaller
            than this gets its full rank instead. With ``spectral`` it may be 0: a module
            of rank 0 is not targeted, which some servers cannot serve.
        r_max: Highest rank; twice the mean rank by default. With ``spectral`` at most the
            number of singular values that were recorded.
        multiple_of: Every rank is a multiple of this.
        groups: Names of modules that must get one common rank.
        scale: The effective LoRA scale ``alpha / rank`` of every module.
        seed: Seed of the random rule and of the random control.
        aggregation: How statistics are reduced to scores; ignored for plain scores.
        base_parameters: Size of the base model, needed for a ``fraction`` budget.
        provenance: Facts about the measurement, to be kept with the plan.

    Returns:
        A plan that meets a rank budget exactly, and any other as closely as whole ranks
        allow without exceeding it, together with both controls at the same budget. Where
        tied or multiple ranks cannot add up to it, the plan's ``unspent`` has what is left.

    Raises:
        InfeasibleBudget: No ranks within the bounds meet the budget; the message has the
            feasible interval.
        InvalidOption: An argument is outside what is allowed.
    """
    if rule not in RULES:
        raise InvalidOption(f"rule {rule!r} is unknown; expected one of {', '.join(RULES)}")
    facts, by_spectrum = dict(provenance or {}), rule == "spectral"
    values: dict[str, Any]
    if isinstance(scores, Mapping):
        values = dict(scores)
    else:
        modules = scores.modules if modules is None else modules
        base_parameters = base_parameters or scores.base_parameters
        reduced = {} if by_spectrum else {"aggregation": aggregation}
        facts = {**scores.provenance(), **reduced, **facts}
        values = dict(_spectra(scores) if by_spectrum else scores.scores(aggregation))
    if not isinstance(budget, Budget):
        budget = Budget("rank", budget)
    modules = _check_modules(values, modules)
    values = {
        m.name: values[m.name] if by_spectrum else _as_score(m.name, values[m.name])
        for m in modules
    }
    _check_ranks(0 if by_spectrum else 1, r_min=r_min)
    _check_ranks(1, r_max=r_max, multiple_of=multiple_of)
    if not 0 < scale < math.inf:
        raise InvalidOption(f"scale={scale}: it must be above 0 and finite")

    limit = budget_limit(budget, modules, base_parameters=base_parameters)
    known = highest_known_rank(values, modules) if by_spectrum else None
    given = r_min, r_max
    r_min, r_max = _bounds(budget, limit, modules, r_min, r_max, known=known)
    try:
        ranks = _solve(
            rule,
            values,
            modules,
            limit,
            in_ranks=budget.unit == "rank",
            bounds=(r_min, r_max),
            multiple_of=multiple_of,
            groups=[tuple(group) for group in groups],
            seed=seed,
        )
    except InfeasibleBudget as error:
        message = explain(
            error,
            budget,
            n_modules=len(modules),
            base_parameters=base_parameters,
            bounds=(r_min, r_max),
            given=given,
        )
        raise InfeasibleBudget(message, interval=error.interval) from error
    return RankPlan(
        modules=modules,
        ranks=ranks[rule],
        scores=captured_energies(values, ranks[rule]) if by_spectrum else values,
        budget=budget,
        limit=limit,
        rule=rule,
        r_min=r_min,
        r_max=r_max,
        scale=scale,
        controls={name: ranks[name] for name in ("random", "uniform")},
        provenance=facts,
    )


def _spectra(statistics: Measured) -> Mapping[str, Any]:
    """The spectra that statistics hold.

    Returns:
        Singular values per module name.

    Raises:
        InvalidOption: There are none.
    """
    if not statistics.spectra:
        raise InvalidOption(
            "rule 'spectral' needs spectra and these statistics hold none; "
            "measure with record='spectra'"
        )
    return statistics.spectra


def _solve(
    rule: str,
    values: Mapping[str, Any],
    modules: Sequence[TargetModule],
    limit: int,
    *,
    in_ranks: bool,
    bounds: tuple[int, int],
    multiple_of: int,
    groups: Sequence[Collection[str]],
    seed: int,
) -> dict[str, dict[str, int]]:
    """Ranks of the rule and of both controls: the same limit and the same bounds for all."""
    r_min, r_max = bounds
    costs = {m.name: m.cost for m in modules}
    highest = {m.name: min(r_max, m.d_in, m.d_out) for m in modules}
    units = gather_units(
        values,
        lowest={name: min(r_min, most) for name, most in highest.items()},
        highest=highest,
        weights=None if in_ranks else costs,
        multiple_of=multiple_of,
        groups=groups,
    )
    # One rank for all that fits; as a ceiling the solver cannot but give it to each.
    even = units if in_ranks else units.below(limit // sum(costs.values()))
    ranks = {
        "random": share_limit(units, _random_scores(values, seed=seed), limit),
        "uniform": share_limit(even, dict.fromkeys(values, 1.0), limit),
    }
    if rule == "proportional":
        ranks[rule] = share_limit(units, values, limit)
    elif rule == "spectral":
        check_spectra(values, highest)
        ranks[rule] = share_by_gain(units, values, limit)
    return ranks


def _bounds(
    budget: Budget,
    limit: int,
    modules: Sequence[TargetModule],
    r_min: int | None,
    r_max: int | None,
    *,
    known: int | None,
) -> tuple[int, int]:
    """The bounds given, completed by the defaults around the budget's mean rank.

    Args:
        budget: What may be spent.
        limit: The same in the unit of the solver.
        modules: The target modules.
        r_min: The floor, if given.
        r_max: The ceiling, if given.
        known: What the ceiling may be by default at most, if anything limits it.

    Returns:
        Lowest and highest rank.

    Raises:
        InvalidOption: The floor is above the ceiling.
    """
    if r_min is not None and r_max is not None and r_min > r_max:
        raise InvalidOption(f"r_min={r_min} is above r_max={r_max}")
    if budget.unit == "rank":
        mean = Fraction(repr(budget.value))
    else:
        mean = Fraction(max(1, limit // sum(m.cost for m in modules)))
    low = max(1, math.floor(mean / 2)) if r_min is None else r_min
    if r_max is None:
        high = max(1, math.ceil(mean * 2))
        high = high if known is None else min(high, known)
    else:
        high = r_max
    return (min(low, high), high) if r_min is None else (low, max(low, high))


def _random_scores(names: Iterable[str], *, seed: int) -> dict[str, float]:
    """Uniform scores in (0, 1], each from the seed and its own name only."""

    def draw(name: str) -> float:
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        return (int.from_bytes(digest[:6], "big") + 1) / 2**48

    return {name: draw(name) for name in names}


def _check_modules(
    scores: Mapping[str, Any], modules: Sequence[TargetModule] | None
) -> tuple[TargetModule, ...]:
    """See that each module is there once and has a score.

    Returns:
        The modules, as a tuple.

    Raises:
        InvalidOption: Modules are missing, doubled, or do not fit the scores.
    """
    if not modules:
        raise InvalidOption("modules is empty: there is nothing to allocate ranks to")
    names = [m.name for m in modules]
    if len(set(names)) < len(names):
        raise InvalidOption(
            f"modules names {next(n for n in names if names.count(n) > 1)!r} twice"
        )
    if odd := sorted(scores.keys() ^ set(names)):
        raise InvalidOption(
            f"scores and modules must name the same modules; {odd[:5]} are in one only"
        )
    return tuple(modules)


def _as_score(name: str, value: Any) -> float:
    """Read the score of a module.

    Returns:
        The score.

    Raises:
        InvalidScore: It is no number.
    """
    with suppress(TypeError, ValueError):
        if not isinstance(value, bool | str | bytes):
            return float(value)
    raise InvalidScore(
        f"the score of {name!r} is {value!r}; scores must be numbers, finite and not negative"
    )


def _check_ranks(least: int, /, **options: int | None) -> None:
    """Refuse ranks that are not whole numbers, or too low.

    Raises:
        InvalidOption: An option is below the least or not an integer.
    """
    for name, value in options.items():
        if value is not None and (type(value) is not int or value < least):
            raise InvalidOption(f"{name}={value!r}: it must be an integer of at least {least}")
