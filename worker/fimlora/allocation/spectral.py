"""Ranks by largest marginal gain: the solver under the rule ``spectral`` (experimental).

The best rank-r step along a gradient gains in proportion to the energy of its r leading
singular values, so one more rank gains the square of the next value. These gains fall
within a module. Taking the largest gain per cost, step by step, is therefore optimal where
all steps cost the same; where costs differ, what it misses of the optimum is less than the
gain of the first step that no longer fits.

Nothing here imports torch.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fimlora.allocation.knapsack import best_steps
from fimlora.allocation.units import Floats, Units
from fimlora.errors import InvalidOption, InvalidScore
from fimlora.plan import TargetModule
from fimlora.scores import Spectra

Indices = NDArray[np.intp]

# Gains per cost that agree in as many leading bits are a tie: they differ by rounding, and
# no plan may depend on the unit of the gradients.
_TIE_BITS = 36


def share_by_gain(units: Units, spectra: Spectra, limit: int) -> dict[str, int]:
    """Spend a limit on the steps that gain most for their cost, within the bounds.

    Ties go to the lower rank, then to the module whose gains are larger where they first
    differ, then to the first name: larger gains throughout never get less at equal cost. A
    limit in ranks is met exactly (unless tied ranks, multiples or a menu cannot add up to it).
    Of any other, less than the cheapest step still open stays unspent. With a menu, whose steps
    are of unequal size, the best choice is found exactly where the case is small enough.

    Args:
        units: The modules; a group gains what its members gain together.
        spectra: Singular values per module name, in any order, at least as many as the
            module may get ranks.
        limit: Ranks in total, or parameters when the units are weighted by cost.

    Returns:
        Rank per module name, in the order of ``spectra``.
    """
    spendable = units.affordable(limit)
    squares = list(_relative_squares(spectra).values())
    members = np.split(units.columns, units.starts[1:])
    gains = [
        _step_gains([squares[i] for i in columns.tolist()], units.ladder[: n_steps + 1])
        for columns, n_steps in zip(members, units.highest.tolist(), strict=True)
    ]
    row, step = _open_steps(units.lowest, units.highest)
    price = (units.weight[row] * units.step_sizes[step]).astype(np.intp)
    gain = np.concatenate([g[low:] for g, low in zip(gains, units.lowest, strict=True)])
    left = spendable - int(units.weight @ units.floor)
    precedence = _precedence(gains, units.ties)
    taken = None
    if not units.is_even:
        taken = _best(np.argsort(precedence), gain, price, units.highest - units.lowest, left)
    if taken is None:
        per_cost = _leading_bits(gain / price)
        order = np.lexsort((precedence[row], step, -per_cost))
        taken = _take(row[order], price[order], left, n_rows=len(gains))
    return units.named(units.lowest + taken, spectra)


def captured_energies(spectra: Spectra, ranks: Mapping[str, int]) -> dict[str, float]:
    """Sum up what ranks capture of each gradient.

    Args:
        spectra: Singular values per module name, in any order.
        ranks: Rank per module name.

    Returns:
        The sum of the squares of the largest ``rank`` values, per module name.
    """
    return {
        name: float(np.square(_falling(values)[: ranks[name]]).sum())
        for name, values in spectra.items()
    }


def highest_known_rank(spectra: Spectra, modules: Collection[TargetModule]) -> int | None:
    """Find the highest rank whose gain is known for every module that could have it.

    Args:
        spectra: Singular values per module name.
        modules: The modules.

    Returns:
        The fewest values of a module that has more than were recorded; ``None`` when all
        spectra are complete.
    """
    sizes = [(np.size(spectra[m.name]), min(m.d_in, m.d_out)) for m in modules]
    return min((known for known, size in sizes if known < size), default=None)


def check_spectra(spectra: Spectra, highest: Mapping[str, int]) -> None:
    """Refuse spectra that no rule can share by.

    Args:
        spectra: Singular values per module name.
        highest: Most ranks per module name.

    Raises:
        InvalidScore: A value is NaN, infinite or negative; the message names the module.
        InvalidOption: A module may get more ranks than it has values: what these would
            gain is not known.
    """
    for name, values in spectra.items():
        try:
            found = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError):
            raise InvalidScore(f"the spectrum of {name!r} is no list of numbers") from None
        if not np.all((found >= 0) & (found < np.inf)):
            raise InvalidScore(
                f"the spectrum of {name!r} has a value that is NaN, infinite or negative"
            )
        if found.size < highest[name]:
            raise InvalidOption(
                f"rule 'spectral' knows what {found.size} ranks of {name!r} gain, not "
                f"{highest[name]}; give an r_max of at most {found.size}"
            )


def _falling(values: Sequence[float] | Floats) -> Floats:
    return np.sort(np.asarray(values, dtype=np.float64).ravel())[::-1]


def _relative_squares(spectra: Spectra) -> dict[str, Floats]:
    """Squares of the values, falling, relative to the largest of all."""
    falling = {name: _falling(values) for name, values in spectra.items()}
    largest = max((values[0] for values in falling.values() if values.size), default=0.0)
    return {name: np.square(values / (largest or 1.0)) for name, values in falling.items()}


def _step_gains(squares: Sequence[Floats], ladder: Floats) -> Floats:
    """What each step of a unit gains: the sum over its members and over its ranks."""
    ends = ladder.astype(np.intp)
    total = np.sum([values[: ends[-1]] for values in squares], axis=0)
    if len(ends) == ends[-1] + 1:
        return np.asarray(total)
    return np.add.reduceat(total, ends[:-1]) if len(ends) > 1 else np.zeros(0)


def _open_steps(lowest: Indices, highest: Indices) -> tuple[Indices, Indices]:
    """Row and number of every step between the bounds."""
    room = highest - lowest
    row = np.repeat(np.arange(len(room)), room)
    return row, np.arange(len(row)) - np.repeat(np.cumsum(room) - room - lowest, room)


def _leading_bits(values: Floats) -> Floats:
    mantissa, exponent = np.frexp(values)
    rounded = np.round(np.ldexp(mantissa, _TIE_BITS))
    return np.asarray(np.ldexp(rounded, exponent - _TIE_BITS))


def _precedence(gains: Sequence[Floats], ties: Indices) -> Indices:
    """Place of each row in a tie: larger gains first, one by one, then the first name."""
    rows = sorted(ties.tolist(), key=lambda i: (-gains[i]).tolist())  # sorting is stable
    place = np.empty(len(rows), dtype=np.intp)
    place[rows] = np.arange(len(rows))
    return place


def _best(
    order: Indices, gain: Floats, price: Indices, rooms: Indices, left: int
) -> Indices | None:
    """The best steps of each row, by rows in some order; ``None`` where that would take long."""
    ends = np.cumsum(rooms)[:-1]
    gains, prices = np.split(gain, ends), np.split(price, ends)
    rows = order.tolist()
    found = best_steps([gains[row] for row in rows], [prices[row] for row in rows], left)
    if found is None:
        return None
    taken = np.empty(len(order), dtype=np.intp)
    taken[order] = found
    return taken


def _take(row: Indices, price: Indices, left: int, *, n_rows: int) -> Indices:
    """Count the steps of each row that fit, taken in order; the others are passed over.

    A row whose step did not fit takes none after it, though a step of a menu may cost less than
    the one before it.

    Returns:
        How many of each row.
    """
    n_fit = int(np.searchsorted(np.cumsum(price), left, side="right"))
    taken = np.bincount(row[:n_fit], minlength=n_rows)
    left -= int(price[:n_fit].sum())
    row, price = row[n_fit:], price[n_fit:]
    # What does not fit once never fits, as what is left only falls; nor does what comes after it.
    is_dear = price > left
    closes = np.full(n_rows, len(row))
    np.minimum.at(closes, row[is_dear], np.flatnonzero(is_dear))
    some = np.flatnonzero(np.arange(len(row)) < closes[row])
    is_closed: set[int] = set()
    for i, cost in zip(row[some].tolist(), price[some].tolist(), strict=True):
        if cost <= left and i not in is_closed:
            taken[i] += 1
            left -= cost
        else:
            is_closed.add(i)
    return taken
