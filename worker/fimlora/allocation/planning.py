"""From scores and a budget to a plan: bounds, units, the rule, and the controls.

Torch-free, so that a service can solve a plan anew from stored statistics.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from fractions import Fraction
from functools import partial
from typing import Any

from fimlora.allocation.controls import check_spending, control_ranks
from fimlora.allocation.layers import (
    UnitsOf,
    choose_layers,
    even_ranks,
    even_ranks_of_many,
    every_choice_fits,
    groups_inside,
    layer_bounds,
    n_layers_of,
    share_over_layers,
)
from fimlora.allocation.limits import budget_limit, explain
from fimlora.allocation.many import Ranks, share_many
from fimlora.allocation.proportional import share_limit
from fimlora.allocation.spectral import (
    captured_energies,
    check_spectra,
    highest_known_rank,
    share_by_gain,
)
from fimlora.allocation.units import Floats, Units, gather_units
from fimlora.errors import InfeasibleBudget, InvalidOption, InvalidScore
from fimlora.plan import Budget, RankPlan, TargetModule
from fimlora.scores import Scores, check_rule


def allocate(
    scores: Scores,
    budget: int | float | Budget = 8,
    *,
    rule: str | None = None,
    r_min: int | None = None,
    r_max: int | None = None,
    multiple_of: int = 1,
    groups: Iterable[Collection[str]] = (),
    n_layers: int | None = None,
    scale: int | float = 2,
    seed: int = 0,
    provenance: Mapping[str, Any] | None = None,
) -> RankPlan:
    """Turn scores and a budget into the rank of every target module.

    Args:
        scores: What `fimlora.score` made of statistics, or plain numbers:
            ``Scores(modules, by_module)``. The rule ``spectral`` takes their ``spectra``.
        budget: A mean rank, or a `Budget` in any unit.
        rule: ``proportional`` shares by score, ``uniform`` and ``random`` are the controls.
            By default the one that the scores go with.
            ``spectral`` goes by marginal gain and is experimental: it is not shown to beat
            ``uniform``. Its plan's scores are the energy that the ranks capture.
            ``layers`` shares evenly over the layers of highest score and targets no other.
        r_min: Lowest rank; half the mean rank (at least 1) by default. A module smaller
            than this gets its full rank instead. With ``spectral`` it may be 0: a module
            of rank 0 is not targeted, which some servers cannot serve. With ``layers`` it is
            1 by default, and binds modules of the chosen layers only.
        r_max: Highest rank; twice the mean rank by default. With ``spectral`` at most the
            number of singular values that were recorded.
        multiple_of: Every rank is a multiple of this.
        groups: Names of modules that must get one common rank.
        n_layers: How many layers the rule ``layers`` chooses; half of them by default. No
            other rule takes it.
        scale: The effective LoRA scale ``alpha / rank`` of every module.
        seed: Seed of the random rule and of the random controls.
        provenance: Facts to be kept with the plan, beside those of the scores.

    Returns:
        A plan that meets a rank budget exactly, and any other as closely as whole ranks
        allow without exceeding it, together with controls that spend the same: ``uniform``,
        ``random`` and more random patterns; of ``layers``, also layers drawn at random. Where
        tied or multiple ranks cannot add up to it, the plan's ``unspent`` has what is left.

    Raises:
        InfeasibleBudget: No ranks within the bounds meet the budget; the message has the
            feasible interval.
        InvalidOption: An argument is outside what is allowed.
    """  # noqa: DOC502 - the helpers raise
    budget = budget if isinstance(budget, Budget) else Budget("rank", budget)
    _check_type(scores)
    rule = scores.rule if rule is None else rule
    modules, values = _check_scores(scores, rule)
    _check_options(rule, r_min, r_max, multiple_of=multiple_of, scale=scale, n_layers=n_layers)

    limit = budget_limit(budget, modules, base_parameters=scores.base_parameters)
    units_of = _units_of(
        modules,
        in_ranks=budget.unit == "rank",
        multiple_of=multiple_of,
        groups=groups,
        rule=rule,
    )
    chosen: Collection[str] = ()
    if rule == "layers":
        chosen = choose_layers(modules, values, scores.by_layer, n_layers)
        bounds = layer_bounds(
            modules,
            chosen,
            limit,
            mean=_mean(budget, limit, modules),
            in_ranks=budget.unit == "rank",
            multiple_of=multiple_of,
            given=(r_min, r_max),
        )
    else:
        known = highest_known_rank(values, modules) if rule == "spectral" else None
        bounds = _bounds(budget, limit, modules, r_min, r_max, known=known)
    with _explaining(budget, scores, bounds, given=(r_min, r_max)):
        if rule == "layers":
            ranks, controls = share_over_layers(
                modules, chosen, bounds, limit, units_of=units_of, seed=seed
            )
        else:
            units = units_of(modules, bounds)
            controls = control_ranks(units, values, limit, seed=seed)
            ranks = controls.get(rule) or _share(
                rule, units, values, limit, _most(modules, bounds)
            )
            check_spending(units, limit, {rule: ranks, **controls})
    return RankPlan(
        modules=modules,
        ranks=ranks,
        scores=captured_energies(values, ranks) if rule == "spectral" else values,
        budget=budget,
        limit=limit,
        rule=rule,
        r_min=bounds[0],
        r_max=bounds[1],
        scale=scale,
        controls=controls,
        provenance={**scores.provenance, **(provenance or {})},
        not_targeted=scores.not_targeted,
        method=scores.method,
    )


def ranks_like(
    plan: RankPlan,
    scores: Scores,
    *,
    multiple_of: int = 1,
    groups: Iterable[Collection[str]] = (),
) -> dict[str, int]:
    """Share what a plan shares, within its bounds and by its rule, by other scores.

    Args:
        plan: The plan.
        scores: Scores of the same modules.
        multiple_of: As the plan was allocated with.
        groups: As the plan was allocated with.

    Returns:
        Rank per module name; the plan's own for the plan's own scores.
    """
    modules, values = _check_scores(scores, plan.rule)
    bounds, units_of = _as_planned(plan, multiple_of, groups)
    if plan.rule == "layers":
        n = n_layers_of(modules, plan.ranks)
        chosen = choose_layers(modules, values, scores.by_layer, n)
        return even_ranks(modules, chosen, bounds, plan.limit, units_of=units_of)
    units = units_of(modules, bounds)
    return _share(plan.rule, units, values, plan.limit, _most(modules, bounds))


def many_like(
    plan: RankPlan,
    scores: Floats,
    *,
    multiple_of: int = 1,
    groups: Iterable[Collection[str]] = (),
) -> Ranks:
    """Do what `ranks_like` does for many score vectors, of a plan by scores.

    Args:
        plan: The plan; by ``layers``, one that `fits_any_scores`.
        scores: One score vector per row, in the order of the plan's modules (R modules).
        multiple_of: As the plan was allocated with.
        groups: As the plan was allocated with.

    Returns:
        Rank per row and module (R modules).
    """
    bounds, units_of = _as_planned(plan, multiple_of, groups)
    if plan.rule == "layers":
        n = n_layers_of(plan.modules, plan.ranks)
        return even_ranks_of_many(
            plan.modules, scores, n, bounds, plan.limit, units_of=units_of
        )
    names = [module.name for module in plan.modules]
    return share_many(units_of(plan.modules, bounds), scores, names, plan.limit)


def fits_any_scores(
    plan: RankPlan, *, multiple_of: int = 1, groups: Iterable[Collection[str]] = ()
) -> bool:
    """Say whether other scores have a plan within a plan's bounds, whatever they are.

    Args:
        plan: The plan.
        multiple_of: As the plan was allocated with.
        groups: As the plan was allocated with.

    Returns:
        Whether they do; only layers of unlike size may have none.
    """
    if plan.rule != "layers":
        return True
    bounds, units_of = _as_planned(plan, multiple_of, groups)
    n = n_layers_of(plan.modules, plan.ranks)
    return every_choice_fits(plan.modules, n, bounds, plan.limit, units_of=units_of)


def _as_planned(
    plan: RankPlan, multiple_of: int, groups: Iterable[Collection[str]]
) -> tuple[tuple[int, int], UnitsOf]:
    """Bounds of a plan, and how its modules are gathered."""
    in_ranks = plan.budget.unit == "rank"
    units_of = _units_of(
        plan.modules, in_ranks=in_ranks, multiple_of=multiple_of, groups=groups, rule=plan.rule
    )
    return (plan.r_min, plan.r_max), units_of


def _units_of(
    modules: Collection[TargetModule],
    *,
    groups: Iterable[Collection[str]],
    rule: str,
    **options: Any,
) -> UnitsOf:
    """Say how modules are gathered, all of them or, by the rule ``layers``, some."""
    tied = [tuple(group) for group in groups]
    if rule != "layers":
        return partial(units_for, groups=tied, **options)
    return lambda some, bounds: units_for(
        some, bounds, groups=groups_inside(tied, modules, some), **options
    )


def _share(
    rule: str, units: Units, values: Mapping[str, Any], limit: int, most: Mapping[str, int]
) -> dict[str, int]:
    """Ranks by a rule that looks at the scores.

    Returns:
        Rank per module name.
    """
    if rule == "proportional":
        return share_limit(units, values, limit)
    check_spectra(values, most)
    return share_by_gain(units, values, limit)


def _most(modules: Iterable[TargetModule], bounds: tuple[int, int]) -> dict[str, int]:
    """Most ranks per module name: a rank above a module's own size buys nothing."""
    return {m.name: min(bounds[1], m.d_in, m.d_out) for m in modules}


def units_for(
    modules: Collection[TargetModule],
    bounds: tuple[int, int],
    *,
    in_ranks: bool,
    multiple_of: int = 1,
    groups: Iterable[Collection[str]] = (),
) -> Units:
    """Gather what the solvers give ranks to: the same for the rule and all controls.

    Args:
        modules: The target modules.
        bounds: Lowest and highest rank; a module smaller than these has its full rank.
        in_ranks: Whether the budget counts ranks; else each costs its parameters.
        multiple_of: Every rank is a multiple of this.
        groups: Names of modules that must get one common rank.

    Returns:
        The units.

    Raises:
        InfeasibleBudget: A unit has no multiple of ``multiple_of`` within its bounds.
    """  # noqa: DOC502 - `gather_units` raises
    costs, highest = {m.name: m.cost for m in modules}, _most(modules, bounds)
    return gather_units(
        costs,
        lowest={name: min(bounds[0], most) for name, most in highest.items()},
        highest=highest,
        weights=None if in_ranks else costs,
        multiple_of=multiple_of,
        groups=[tuple(group) for group in groups],
    )


@contextmanager
def _explaining(
    budget: Budget,
    scores: Scores,
    bounds: tuple[int, int],
    *,
    given: tuple[int | None, int | None],
) -> Iterator[None]:
    """Say of an infeasible budget what can be asked for in its place.

    Yields:
        None.

    Raises:
        InfeasibleBudget: The solver's, with a message in the unit of the budget.
    """
    try:
        yield
    except InfeasibleBudget as error:
        message = explain(
            error,
            budget,
            n_modules=len(scores.modules),
            base_parameters=scores.base_parameters,
            bounds=bounds,
            given=given,
        )
        raise InfeasibleBudget(message, interval=error.interval) from error


def _bounds(
    budget: Budget,
    limit: int,
    modules: Iterable[TargetModule],
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
    """
    mean = _mean(budget, limit, modules)
    low = max(1, math.floor(mean / 2)) if r_min is None else r_min
    if r_max is None:
        high = max(1, math.ceil(mean * 2))
        high = high if known is None else min(high, known)
    else:
        high = r_max
    return (min(low, high), high) if r_min is None else (low, max(low, high))


def _mean(budget: Budget, limit: int, modules: Iterable[TargetModule]) -> Fraction:
    """The mean rank that a budget buys, in whole ranks where it does not name it."""
    if budget.unit == "rank":
        return Fraction(repr(budget.value))
    return Fraction(max(1, limit // sum(m.cost for m in modules)))


def _check_scores(scores: Scores, rule: str) -> tuple[tuple[TargetModule, ...], dict[str, Any]]:
    """See that there is what the rule goes by, for each module and once.

    Returns:
        The modules, and what the rule goes by in their order: scores, or spectra.

    Raises:
        InvalidOption: The rule is unknown or has nothing to go by, or modules are missing,
            doubled, or do not fit the scores.
    """
    check_rule(rule)
    modules, spectral = tuple(scores.modules), rule == "spectral"
    if spectral and modules and not scores.spectra:
        raise InvalidOption(
            "rule 'spectral' needs spectra and these scores hold none; "
            "measure with record='spectra' and score with method='spectral'"
        )
    if not spectral and modules and scores.spectra and not scores.by_module:
        raise InvalidOption(
            f"rule {rule!r} goes by scores and these hold spectra only; "
            "score with another method, such as 'fim'"
        )
    values: Mapping[str, Any] = scores.spectra if spectral else scores.by_module
    _check_modules(values, modules)
    if spectral:
        return modules, {m.name: values[m.name] for m in modules}
    return modules, {m.name: _as_score(m.name, values[m.name]) for m in modules}


def _check_type(scores: object) -> None:
    """Say what takes the place of statistics or plain numbers.

    Raises:
        InvalidOption: It is something else than `Scores`.
    """
    if not isinstance(scores, Scores):
        raise InvalidOption(
            f"allocate takes Scores, not {type(scores).__name__}; give it what "
            "fimlora.score(statistics) returns, or wrap numbers of your own: "
            "Scores(modules=..., by_module=...)"
        )


def _check_modules(values: Mapping[str, Any], modules: Collection[TargetModule]) -> None:
    """See that each module is there once and has a value.

    Raises:
        InvalidOption: Modules are missing, doubled, or do not fit the values.
    """
    if not modules:
        raise InvalidOption("modules is empty: there is nothing to allocate ranks to")
    names = [m.name for m in modules]
    if len(set(names)) < len(names):
        raise InvalidOption(
            f"modules names {next(n for n in names if names.count(n) > 1)!r} twice"
        )
    if odd := sorted(values.keys() ^ set(names)):
        raise InvalidOption(
            f"scores and modules must name the same modules; {odd[:5]} are in one only"
        )


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


def _check_options(
    rule: str,
    r_min: int | None,
    r_max: int | None,
    *,
    multiple_of: int,
    scale: int | float,
    n_layers: int | None,
) -> None:
    """Refuse options that no budget could go with.

    Raises:
        InvalidOption: A rank or the scale is outside what is allowed, the floor is above
            the ceiling, or the rule chooses no layers.
    """
    if n_layers is not None and rule != "layers":
        raise InvalidOption(
            f"n_layers={n_layers!r} goes with rule 'layers' alone, and this one is {rule!r}"
        )
    _check_ranks(0 if rule == "spectral" else 1, r_min=r_min)
    _check_ranks(1, r_max=r_max, multiple_of=multiple_of)
    if not 0 < scale < math.inf:
        raise InvalidOption(f"scale={scale}: it must be above 0 and finite")
    if r_min is not None and r_max is not None and r_min > r_max:
        raise InvalidOption(f"r_min={r_min} is above r_max={r_max}")


def _check_ranks(least: int, /, **options: int | None) -> None:
    """Refuse ranks that are not whole numbers, or too low.

    Raises:
        InvalidOption: An option is below the least or not an integer.
    """
    for name, value in options.items():
        if value is not None and (type(value) is not int or value < least):
            raise InvalidOption(f"{name}={value!r}: it must be an integer of at least {least}")
