"""Plans under other aggregations, fewer batches and other floors, from what one run has measured.

The paper varies these one by one; none needs another pass. A score that is a mean of one value per
example is known for the first batches alone, as each example's value was kept. The largest and the
Euclidean norm go by sums over all examples of each row of the gradient, which are known for all
batches together and no fewer: there the sweep says so and states nothing. Kept apart by batch they
would be the largest part of most files, 11 MB a batch for the linear maps of Llama-3-8B. Torch-free.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np

from fimlora.allocation import allocate
from fimlora.allocation.distance import plans_apart
from fimlora.confidence.signal import SignalSource, signal_from, source_if_any
from fimlora.errors import InfeasibleBudget, InvalidOption
from fimlora.methods.fim import Aggregation
from fimlora.methods.fim_adapter import ADAPTER_GROUP
from fimlora.methods.score import score
from fimlora.plan import Budget, RankPlan
from fimlora.scores import Scores
from fimlora.statistics import Statistics

SWEEP_FORMAT = "fimlora.sweep/1"
AGGREGATIONS = tuple(kind.value for kind in Aggregation)
MOST_ROWS = 128
_DIGITS = 6
_ROWS_OF_ALL = (
    "rows of the gradient are summed over all batches, so that this aggregation is not known for "
    "fewer; measure with as many batches"
)
_OF_AN_ADAPTER = "gradients of a trained adapter are summed by rank over all batches, which gives their mean alone"
_NO_EXAMPLES = "the estimator keeps no value per example; measure with exact or sketched"
_NO_SIZES = "these statistics do not say where their batches end; measure anew"


@dataclass(frozen=True, slots=True)
class SweepRow:
    """One plan of a sweep, or why there is none.

    Attributes:
        aggregation: How scores were taken.
        n_batches: Batches that they are of.
        r_min: Lowest rank.
        r_max: Highest rank; ``None`` without a plan, as is all that follows.
        moved: Ranks that lie elsewhere than in the plan of all batches with this aggregation and
            floor.
        overlap: Share of the ranks (of the parameters, at a budget in these) that lie where that
            plan has them.
        overlap_with_default: Share that lie where the plan of all batches by the mean with the
            default floor has them.
        at_floor: Share of the modules with the lowest rank they may have.
        at_ceiling: Share with the highest.
        signal: Verdict of the plan's signal, where the null was measured.
        moved_by_labels: Share of the plan that labels move, likewise.
        unknown: Why there is no plan, in a sentence without a stop.
    """

    aggregation: str
    n_batches: int
    r_min: int
    r_max: int | None = None
    moved: int | None = None
    overlap: float | None = None
    overlap_with_default: float | None = None
    at_floor: float | None = None
    at_ceiling: float | None = None
    signal: str | None = None
    moved_by_labels: float | None = None
    unknown: str | None = None


@dataclass(frozen=True, slots=True)
class Sweep:
    """Plans at one budget under several settings.

    Attributes:
        budget: The budget.
        n_batches: Batches that were measured.
        n_examples: Examples in them.
        default_r_min: The floor where none is asked for.
        rows: A row per aggregation, floor and number of batches, in that order.
    """

    budget: Budget
    n_batches: int
    n_examples: int
    default_r_min: int
    rows: tuple[SweepRow, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain data: same sweep, same bytes."""
        return {"format": SWEEP_FORMAT, **asdict(self), "rows": [asdict(r) for r in self.rows]}


def sweep(
    statistics: Statistics,
    budget: int | float | Budget = 8,
    *,
    aggregations: Collection[str] = AGGREGATIONS,
    n_batches: Collection[int] | None = None,
    r_min: Collection[int] | None = None,
    signal: bool = True,
    **options: Any,
) -> Sweep:
    """Plan by the Fisher information under several settings, and say what each changes.

    Args:
        statistics: What `fimlora.measure` returned.
        budget: A mean rank, or a `Budget` in any unit; the same for all.
        aggregations: Of ``mean``, ``max`` and ``l2``.
        n_batches: Numbers of batches, at most as many as were measured; by default 1, 2, 4 ... and
            all.
        r_min: Floors; by default 1, half of what `fimlora.allocate` takes by itself, and that.
        signal: Whether to state the signal of each plan, where the null was measured.
        **options: All else that `fimlora.allocate` takes; the same for all.

    Returns:
        The sweep.

    Raises:
        InvalidOption: An argument is outside what is allowed, or there would be more rows than
            `MOST_ROWS`.
        InfeasibleBudget: No ranks within the default bounds meet the budget.
    """  # noqa: DOC502 - `allocate` raises
    groups = options.get("groups", ())
    if not isinstance(groups, str):  # looked through once per plan
        options["groups"] = [tuple(group) for group in groups]
    options = {"scale": statistics.scale} | options
    default = allocate(score(statistics, scale=options["scale"]), budget, **options)
    batches = _numbers("n_batches", n_batches, _doubling(statistics.n_batches))
    floor = default.r_min
    floors = _numbers("r_min", r_min, {1, max(1, floor // 2), floor})
    if max(batches) > statistics.n_batches:
        raise InvalidOption(
            f"n_batches={max(batches)}: {statistics.n_batches} were measured; ask for at most as "
            "many"
        )
    kinds = list(dict.fromkeys(aggregations))
    if unknown := [kind for kind in kinds if kind not in AGGREGATIONS]:
        raise InvalidOption(
            f"aggregation={unknown[0]!r}; allowed are {', '.join(AGGREGATIONS)}"
        )
    if not kinds or len(kinds) * len(batches) * len(floors) > MOST_ROWS:
        raise InvalidOption(
            f"{len(kinds)} aggregations, {len(batches)} numbers of batches and {len(floors)} floors: "
            f"a sweep has 1 to {MOST_ROWS} rows; ask for fewer"
        )
    taken = {
        (kind, n): _take(statistics, kind, n, options["scale"], signal=signal)
        for kind, n in product(kinds, {*batches, statistics.n_batches})
    }
    rows = [
        row
        for kind, low in product(kinds, floors)
        for row in _rows(statistics, taken, kind, low, batches, default, budget, options)
    ]
    return Sweep(
        default.budget, statistics.n_batches, statistics.n_examples, default.r_min, tuple(rows)
    )


@dataclass(frozen=True, slots=True)
class _Taken:
    """Scores of the first batches, and what their signal goes by."""

    scores: Scores
    source: SignalSource | str | None


def _rows(
    statistics: Statistics,
    taken: dict[tuple[str, int], _Taken | str],
    kind: str,
    low: int,
    batches: Sequence[int],
    default: RankPlan,
    budget: int | float | Budget,
    options: dict[str, Any],
) -> Iterable[SweepRow]:
    """Rows of one aggregation and floor, held against the plan of all batches."""
    whole = taken[kind, statistics.n_batches]
    if isinstance(whole, str):
        yield from (SweepRow(kind, n, low, unknown=whole) for n in batches)
        return
    try:
        full = allocate(whole.scores, budget, **options | {"r_min": low})
    except InfeasibleBudget as error:
        for n in batches:
            yield SweepRow(kind, n, low, unknown=str(error))
        return
    for n in batches:
        found = taken[kind, n]
        if isinstance(found, str):
            yield SweepRow(kind, n, low, unknown=found)
            continue
        plan = allocate(found.scores, budget, **options | {"r_min": low})
        yield _row(plan, full, default, kind, n, found.source)


def _row(
    plan: RankPlan,
    full: RankPlan,
    default: RankPlan,
    kind: str,
    n: int,
    source: SignalSource | str | None,
) -> SweepRow:
    ranks = [(plan.ranks[m.name], min(m.d_in, m.d_out)) for m in plan.modules]
    signal = None
    if isinstance(source, SignalSource):
        signal = signal_from(source, plan)
    return SweepRow(
        kind,
        n,
        plan.r_min,
        plan.r_max,
        moved=_moved(plan, full),
        overlap=_share(1 - plans_apart(plan, full)),
        overlap_with_default=_share(1 - plans_apart(plan, default)),
        at_floor=_share(np.mean([rank <= min(plan.r_min, most) for rank, most in ranks])),
        at_ceiling=_share(np.mean([rank >= min(plan.r_max, most) for rank, most in ranks])),
        signal=None if signal is None else signal.verdict,
        moved_by_labels=None if signal is None else _share(signal.moved_by_labels),
    )


def _moved(plan: RankPlan, other: RankPlan) -> int:
    """Ranks that one has to be given where it has fewer, or taken where it has more."""
    changes = [rank - other.ranks[name] for name, rank in plan.ranks.items()]
    return max(sum(c for c in changes if c > 0), -sum(c for c in changes if c < 0))


def _share(value: Any) -> float:
    return round(float(value), _DIGITS)


def _take(
    statistics: Statistics, kind: str, n: int, scale: int | float, *, signal: bool
) -> _Taken | str:
    """What plans of the first batches go by; why nothing is known of these, if so."""
    is_trained = bool(statistics.quantities.get(ADAPTER_GROUP))
    if is_trained and (kind != Aggregation.MEAN or n < statistics.n_batches):
        return _OF_AN_ADAPTER
    if n == statistics.n_batches:
        scores = score(statistics, scale=scale, aggregation=kind)
        source = source_if_any(statistics, "fim", scale=scale, aggregation=kind)
        return _Taken(scores, source if signal else None)
    if kind != Aggregation.MEAN:
        return _ROWS_OF_ALL
    if not statistics.example_energies:
        return _NO_EXAMPLES
    if not statistics.batch_sizes:
        return _NO_SIZES
    first = _First(statistics, n, scale)
    null = statistics.null
    has_null = null is not None and null.null_targets is not None and null.null_targets[1]
    return _Taken(first.scores(statistics), first.source() if signal and has_null else None)


@dataclass(frozen=True, slots=True)
class _First:
    """The first batches of a run whose scores are means of a value per example.

    Attributes:
        statistics: The run.
        n_batches: How many batches.
        scale: LoRA scale.
    """

    statistics: Statistics
    n_batches: int
    scale: int | float

    def scores(self, part: Statistics, batches: slice = slice(None)) -> Scores:
        """Scores of the run or of its null, over some of these batches."""
        of_batch = np.repeat(
            range(self.n_batches), self.statistics.batch_sizes[: self.n_batches]
        )
        chosen = np.isin(of_batch, range(self.n_batches)[batches])
        return Scores(
            part.modules,
            {
                m.name: self.scale**2
                * float(part.example_energies[m.name][: len(chosen)][chosen].mean())
                / (3 * m.n_weights)
                for m in part.modules
            },
            base_parameters=part.base_parameters,
            method="fim",
        )

    def source(self) -> SignalSource:
        """What the signal goes by: as in a run of these batches alone."""
        statistics, sizes = self.statistics, self.statistics.batch_sizes[: self.n_batches]
        assert statistics.null is not None
        assert statistics.null.null_targets is not None
        halves = [slice(0, None, 2), slice(1, None, 2)] if self.n_batches > 1 else []
        run, null = (
            np.column_stack([part.example_energies[m.name][: sum(sizes)] for m in part.modules])
            for part in (statistics, statistics.null)
        )
        return SignalSource(
            self.scores(statistics),
            self.scores(statistics.null),
            tuple(self.scores(statistics, half) for half in halves),
            (run, null),
            statistics.null.null_targets,
            tuple(sum(sizes[half]) for half in halves),
        )


def _doubling(n: int) -> set[int]:
    """1, 2, 4 ... and all."""
    return {*(1 << k for k in range(n.bit_length())), n}


def _numbers(name: str, given: Collection[int] | None, default: Collection[int]) -> list[int]:
    """Whole numbers of at least 1, each once, ascending."""
    found = sorted(set(default if given is None else given))
    if not found:
        raise InvalidOption(f"{name}={given!r}: give one at least")
    if found[0] < 1:
        raise InvalidOption(f"{name}={found[0]}: it must be at least 1")
    return found
