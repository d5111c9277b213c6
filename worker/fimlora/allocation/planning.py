"""From scores and a budget to a plan: bounds, units, the rule, and the controls.

Torch-free, so that a service can solve a plan anew from stored statistics.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np

from fimlora.allocation.controls import PLAN, check_steps, control_table
from fimlora.allocation.division import Part, divide, division_of, gather, share_parts
from fimlora.allocation.falling import Falling
from fimlora.allocation.layers import Layers, choose_layers
from fimlora.allocation.limits import budget_limit, explain
from fimlora.allocation.listed import Listed
from fimlora.allocation.named_ranks import NamedRanks
from fimlora.allocation.over_layers import (
    fits_any_layers,
    layer_bounds,
    layers_like,
    many_layers_like,
    parts_inside,
    share_over_layers,
)
from fimlora.allocation.proportional import checked_scores, share_limit
from fimlora.allocation.spectral import (
    captured_energies,
    check_spectra,
    highest_known_rank,
    steps_by_gain,
)
from fimlora.allocation.units import Floats, Ranks
from fimlora.constraints import Constraints, Groups, TypeRule
from fimlora.errors import InfeasibleBudget, InvalidOption, InvalidScore
from fimlora.plan import Budget, RankPlan, TargetModule
from fimlora.scaling import scaling_for
from fimlora.scores import Scores, check_rule


def allocate(
    scores: Scores,
    budget: int | float | Budget = 8,
    *,
    rule: str | None = None,
    r_min: int | None = None,
    r_max: int | None = None,
    multiple_of: int = 1,
    rank_menu: str | Iterable[int] = (),
    groups: Groups = (),
    per_type: Mapping[str, TypeRule | Mapping[str, Any]] | None = None,
    max_lora_rank: int | None = None,
    n_layers: int | None = None,
    scale: int | float = 2,
    alpha: int | float | None = None,
    rslora: bool = False,
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
        rank_menu: The ranks that are allowed, or ``powers-of-two`` or ``vllm``; in place of
            ``multiple_of``.
        groups: Modules that must get one common rank: lists of names, endings of names, or
            either with ``*`` for any characters; or ``type`` (those of one kind over all layers),
            ``fused`` (what servers pack: q/k/v, gate/up and the experts of one layer) or
            ``layer``.
        per_type: ``r_min``, ``r_max`` and ``share`` of the budget for the modules that a name,
            an ending or a pattern names. They hold for the controls as well; with ``layers``,
            floors that the budget cannot meet over all layers bind the chosen ones only.
        max_lora_rank: The highest rank that a server allows: it caps every ceiling.
        n_layers: How many layers the rule ``layers`` chooses; half of them by default. No
            other rule takes it.
        scale: The effective LoRA scale ``alpha / rank`` of every module.
        alpha: One alpha for all modules in place of one scale: each has ``alpha / rank`` then,
            as in the paper's published code.
        rslora: With ``alpha``: each module has ``alpha / sqrt(rank)``.
        seed: Seed of the random rule and of the random controls.
        provenance: Facts to be kept with the plan, beside those of the scores.

    Returns:
        A plan that meets a rank budget exactly, and any other as closely as whole ranks
        allow without exceeding it, together with controls that spend the same: ``uniform``,
        ``random`` and more random patterns; of ``layers``, also layers drawn at random. Where
        tied ranks, multiples or a menu cannot add up to it, the plan's ``unspent`` has what is
        left.

    Raises:
        InfeasibleBudget: No ranks within the bounds meet the budget; the message has the
            feasible interval.
        InvalidOption: An argument is outside what is allowed.
    """  # noqa: DOC502 - the helpers raise
    budget = budget if isinstance(budget, Budget) else Budget("rank", budget)
    _check_type(scores)
    rule = scores.rule if rule is None else rule
    modules, values = _check_scores(scores, rule)
    constraints = Constraints.of(
        multiple_of=multiple_of,
        rank_menu=rank_menu,
        groups=groups,
        per_type=per_type,
        max_lora_rank=max_lora_rank,
    )
    _check_options(rule, r_min, r_max, constraints=constraints, scale=scale, n_layers=n_layers)
    scaling = scaling_for(alpha, rslora=rslora)

    _check_bytes(budget, modules)
    limit = budget_limit(budget, modules, base_parameters=scores.base_parameters)
    given = r_min, r_max
    if rule == "layers":
        bounds, ranks, controls = _over_layers(
            scores,
            modules,
            values,
            budget,
            limit,
            constraints,
            given=given,
            n_layers=n_layers,
            seed=seed,
        )
    else:
        bounds, ranks, controls = _over_modules(
            scores,
            modules,
            values,
            budget,
            limit,
            constraints,
            given=given,
            rule=rule,
            seed=seed,
        )
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
        constraints=constraints,
        scaling=scaling,
        lora_alpha=alpha,
        controls=controls,
        provenance={**scores.provenance, **(provenance or {})},
        not_targeted=scores.not_targeted,
        method=scores.method,
    )


_Named = dict[str, int]
_Solved = tuple[tuple[int, int], _Named, NamedRanks]


def _over_modules(
    scores: Scores,
    modules: Listed,
    values: Mapping[str, Any],
    budget: Budget,
    limit: int,
    constraints: Constraints,
    *,
    given: tuple[int | None, int | None],
    rule: str,
    seed: int,
) -> _Solved:
    """Bounds, ranks and controls by a rule that shares over all modules."""
    known = highest_known_rank(values, modules) if rule == "spectral" else None
    bounds = _bounds(budget, limit, modules, *given, known=known, constraints=constraints)
    divided = partial(
        divide,
        modules,
        limit=limit,
        constraints=constraints,
        in_ranks=budget.unit == "rank",
        not_targeted=scores.not_targeted,
    )
    widest = _widest(modules, given, known=known, constraints=constraints)
    with _explaining(budget, scores, bounds, given=given, solvable=partial(divided, widest)):
        parts = divided(bounds)
        tables = _with_controls(rule, parts, values, seed=seed)
    names = list(values)
    ranks = dict(zip(names, tables[rule].tolist(), strict=True))
    if rule not in {"uniform", "random"}:
        del tables[rule]
    return bounds, ranks, NamedRanks(names, tables)


def _over_layers(
    scores: Scores,
    modules: Listed,
    values: Mapping[str, float],
    budget: Budget,
    limit: int,
    constraints: Constraints,
    *,
    given: tuple[int | None, int | None],
    n_layers: int | None,
    seed: int,
) -> _Solved:
    """Bounds, ranks and controls by the rule that chooses layers."""
    layers = Layers(modules)
    chosen = layers.numbered(choose_layers(layers, values, scores.by_layer, n_layers))
    gathered = gather(
        modules,
        constraints,
        in_ranks=budget.unit == "rank",
        not_targeted=scores.not_targeted,
    )
    bounds = layer_bounds(
        gathered,
        layers.inside(chosen),
        limit,
        mean=_mean(budget, limit, modules),
        given=given,
    )
    inside = layers.inside(chosen)
    widest = _widest(modules, given, known=None, constraints=constraints)
    solvable = partial(parts_inside, gathered, inside, widest, limit)
    with _explaining(budget, scores, bounds, given=given, solvable=solvable):
        ranks, controls = share_over_layers(gathered, layers, chosen, bounds, limit, seed=seed)
    return bounds, ranks, controls


def ranks_like(plan: RankPlan, scores: Scores) -> dict[str, int]:
    """Share what a plan shares, within its bounds and by its rule, by other scores.

    Args:
        plan: The plan.
        scores: Scores of the same modules.

    Returns:
        Rank per module name; the plan's own for the plan's own scores.
    """
    _, values = _check_scores(scores, plan.rule)
    if plan.rule == "layers":
        return layers_like(plan, values, scores.by_layer)
    return _share(plan.rule, division_of(plan), values)


def many_like(plan: RankPlan, scores: Floats) -> Ranks:
    """Do what `ranks_like` does for many score vectors, of a plan by scores.

    Args:
        plan: The plan; by ``layers``, one that `fits_any_scores`.
        scores: One score vector per row, in the order of the plan's modules (R modules).

    Returns:
        Rank per row and module (R modules).
    """
    if plan.rule == "layers":
        return many_layers_like(plan, scores)
    return share_parts(division_of(plan), scores)


def fits_any_scores(plan: RankPlan) -> bool:
    """Say whether other scores have a plan within a plan's bounds, whatever they are.

    Args:
        plan: The plan.

    Returns:
        Whether they do; only layers of unlike size may have none.
    """
    return plan.rule != "layers" or fits_any_layers(plan)


def _share(rule: str, parts: tuple[Part, ...], values: Mapping[str, Any]) -> dict[str, int]:
    """Ranks by a rule that looks at the scores.

    Returns:
        Rank per module name, in the order of the values.
    """
    if rule == "spectral":
        return dict(zip(values, _by_gain(parts, Falling.of(values)).tolist(), strict=True))
    if len(parts) == 1:
        return share_limit(parts[0].units, values, parts[0].limit)
    shared: dict[str, int] = {}
    for part in parts:
        shared |= share_limit(part.units, {n: values[n] for n in part.names}, part.limit)
    return {name: shared[name] for name in values}


def _by_gain(parts: tuple[Part, ...], falling: Falling) -> Ranks:
    """Ranks by the rule ``spectral``, in the order of the modules."""
    found = np.empty(len(falling), dtype=np.int64)
    for part in parts:
        some = falling if len(parts) == 1 else falling.at(part.columns)
        check_spectra(some, part.units.ranks(part.units.highest))
        found[part.columns] = part.units.ranks(steps_by_gain(part.units, some, part.limit))
    return found


def _with_controls(
    rule: str, parts: tuple[Part, ...], values: Mapping[str, Any], *, seed: int
) -> dict[str, Ranks]:
    """Ranks by a rule and of each control, all of which are seen to spend the same.

    Returns:
        Ranks in the order of the values, by rule or control.
    """
    by_score = None
    if rule == "proportional":
        for part in parts:
            part.units.affordable(part.limit)  # a budget that nothing meets is told first
        by_score = checked_scores(values)
    tables: dict[str, Ranks] = {}
    for part in parts:
        some = None if by_score is None else by_score[part.columns]
        found = control_table(part.units, part.limit, seed=seed, scores=some)
        for name, ranks in found.items():
            whole = tables.setdefault(
                rule if name == PLAN else name, np.empty(len(values), dtype=np.int64)
            )
            whole[part.columns] = ranks
    if rule not in tables:
        tables[rule] = _by_gain(parts, Falling.of(values))
    for part in parts:
        steps = {
            name: part.units.steps_of(ranks[part.columns]) for name, ranks in tables.items()
        }
        check_steps(part.units, part.limit, steps)
    return tables


@contextmanager
def _explaining(
    budget: Budget,
    scores: Scores,
    bounds: tuple[int, int],
    *,
    given: tuple[int | None, int | None],
    solvable: Callable[[], tuple[Part, ...]],
) -> Iterator[None]:
    """Say of an infeasible budget what can be asked for in its place.

    Args:
        budget: The budget.
        scores: The scores.
        bounds: Lowest and highest rank.
        given: The same as requested.
        solvable: Gives the parts within the widest bounds that the request allows.

    Yields:
        None.

    Raises:
        InfeasibleBudget: The solver's, with a message in the unit of the budget.
    """
    try:
        yield
    except InfeasibleBudget as error:
        reachable = error.interval and _reachable(given, solvable)
        message = explain(
            error,
            budget,
            n_modules=len(scores.modules),
            base_parameters=scores.base_parameters,
            bounds=bounds,
            given=given,
            reachable=reachable,
        )
        raise InfeasibleBudget(message, interval=reachable or error.interval) from error


def _widest(
    modules: Listed,
    given: tuple[int | None, int | None],
    *,
    known: int | None,
    constraints: Constraints,
) -> tuple[int, int]:
    """The bounds given, completed by the lowest and the highest that any budget could have."""
    caps = (known, constraints.max_lora_rank, int(modules.sizes.max()))
    low = 1 if given[0] is None else given[0]
    high = min(cap for cap in caps if cap is not None) if given[1] is None else given[1]
    return low, max(low, high)


def _reachable(
    given: tuple[int | None, int | None], solvable: Callable[[], tuple[Part, ...]]
) -> tuple[int, int] | None:
    """The least and the most that can be spent, where bounds are defaults and one limit binds all."""
    if None not in given:
        return None
    with suppress(InfeasibleBudget, InvalidOption):
        parts = solvable()
        return parts[0].units.interval if len(parts) == 1 else None
    return None


def _bounds(
    budget: Budget,
    limit: int,
    modules: Listed,
    r_min: int | None,
    r_max: int | None,
    *,
    known: int | None,
    constraints: Constraints,
) -> tuple[int, int]:
    """The bounds given, completed by the defaults around the budget's mean rank.

    A default makes room for the nearest rank of a menu beyond it; what a server allows caps all.

    Args:
        budget: What may be spent.
        limit: The same in the unit of the solver.
        modules: The target modules.
        r_min: The floor, if given.
        r_max: The ceiling, if given.
        known: What the ceiling may be by default at most, if anything limits it.
        constraints: The menu, and what a server allows.

    Returns:
        Lowest and highest rank.

    Raises:
        InvalidOption: The floor that was given is above what the server allows.
    """
    mean = _mean(budget, limit, modules)
    menu, cap = constraints.rank_menu, constraints.max_lora_rank
    low, high = r_min, r_max
    if low is None:
        low = max(1, math.floor(mean / 2))
        low = max((rank for rank in menu if rank <= low), default=low)
    if high is None:
        high = max(1, math.ceil(mean * 2))
        high = min((rank for rank in menu if rank >= high), default=high)
        high = high if known is None else min(high, known)
    if cap is not None:
        if r_min is not None and r_min > cap:
            raise InvalidOption(f"r_min={r_min} is above max_lora_rank={cap}")
        high = min(high, cap)
    return (min(low, high), high) if r_min is None else (low, max(low, high))


def _mean(budget: Budget, limit: int, modules: Listed) -> Fraction:
    """The mean rank that a budget buys, in whole ranks where it does not name it."""
    if budget.unit == "rank":
        return Fraction(repr(budget.value))
    return Fraction(max(1, limit // int(modules.costs.sum())))


def _check_scores(scores: Scores, rule: str) -> tuple[Listed, dict[str, Any]]:
    """See that there is what the rule goes by, for each module and once.

    Returns:
        The modules, and what the rule goes by in their order: scores, or spectra.

    Raises:
        InvalidOption: The rule is unknown or has nothing to go by, or modules are missing,
            doubled, or do not fit the scores.
    """
    check_rule(rule)
    modules, spectral = Listed.of(scores.modules), rule == "spectral"
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
    is_in_order = bool(modules) and list(values) == modules.names
    if not is_in_order:
        _check_modules(values, modules)
    found = dict(values) if is_in_order else {name: values[name] for name in modules.names}
    if spectral:
        return modules, Falling(found)
    if set(map(type, found.values())) <= {float}:
        return modules, found
    return modules, {name: _as_score(name, value) for name, value in found.items()}


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


def _check_modules(values: Mapping[str, Any], modules: Listed) -> None:
    """See that each module is there once and has a value.

    Raises:
        InvalidOption: Modules are missing, doubled, or do not fit the values.
    """
    if not modules:
        raise InvalidOption("modules is empty: there is nothing to allocate ranks to")
    names = modules.names
    known = set(names)
    if len(known) < len(names):
        raise InvalidOption(
            f"modules names {next(n for n in names if names.count(n) > 1)!r} twice"
        )
    if odd := sorted(values.keys() ^ known):
        raise InvalidOption(
            f"scores and modules must name the same modules; {odd[:5]} are in one only"
        )


def _check_bytes(budget: Budget, modules: Iterable[TargetModule]) -> None:
    """Refuse a budget in bytes where files hold more than what trains.

    Raises:
        InvalidOption: Experts are selected.
    """
    selected = next((module.name for module in modules if module.experts is not None), None)
    if budget.unit == "bytes" and selected is not None:
        raise InvalidOption(
            f"a budget in bytes counts files, which hold zeros for each expert of {selected!r} that "
            "is not selected: give it in parameters, which are those that train"
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
    constraints: Constraints,
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
    least = 0 if rule == "spectral" else 1
    own = {f"per_type[{name!r}]: r_min": t.r_min for name, t in constraints.per_type.items()}
    _check_ranks(least, r_min=r_min, **own)
    _check_ranks(1, r_max=r_max)
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
