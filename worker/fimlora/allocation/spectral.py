"""Ranks by largest marginal gain: the solver under the rule ``spectral`` (experimental).

The best rank-r step along a gradient gains in proportion to the energy of its r leading
singular values, so one more rank gains the square of the next value. These gains fall
within a module. Taking the largest gain per cost, step by step, is therefore optimal where
all steps cost the same; where costs differ, what it misses of the optimum is less than the
gain of the first step that no longer fits.

Nothing here imports torch.
"""

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from fimlora.allocation.falling import Falling
from fimlora.allocation.greedy import take_by_worth, take_from_table
from fimlora.allocation.knapsack import best_steps
from fimlora.allocation.listed import Listed
from fimlora.allocation.units import Floats, Ranks, Units
from fimlora.errors import InvalidOption
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
    return units.named(steps_by_gain(units, Falling.of(spectra), limit), spectra)


def steps_by_gain(units: Units, falling: Falling, limit: int) -> Indices:
    """Do what `share_by_gain` does, without a name for each rank.

    Args:
        units: The modules.
        falling: Their singular values, in their order.
        limit: Ranks in total, or parameters when the units are weighted by cost.

    Returns:
        Steps of each row.
    """
    spendable = units.affordable(limit)
    gains = _step_gains(_relative_squares(falling, int(units.ladder[-1])), units)
    left = spendable - int(units.weight @ units.floor)
    solve = _share_even if units.is_even else _share_uneven
    return np.asarray(units.lowest + solve(units, gains, _precedence(gains, units), left))


def _share_even(units: Units, gains: Floats, precedence: Indices, left: int) -> Indices:
    """Steps of each row above its lowest, where all steps are of one size."""
    price = units.weight * float(units.step_sizes[0])
    first = int(units.lowest.min(initial=gains.shape[1]))
    of_steps = gains[:, first : int(units.highest.max(initial=0))]
    worth = _leading_bits(of_steps / price[:, None])
    return take_from_table(worth, price, units.lowest, units.highest, precedence, limit=left)


def _share_uneven(units: Units, gains: Floats, precedence: Indices, left: int) -> Indices:
    """Do what `_share_even` does with the steps of a menu: the best choice where that is quick."""
    row, step = _open_steps(units.lowest, units.highest)
    price = (units.weight[row] * units.step_sizes[step]).astype(np.intp)
    gain = gains[row, step]
    taken = _best(np.argsort(precedence), gain, price, units.highest - units.lowest, left)
    if taken is not None:
        return taken
    return take_by_worth(_leading_bits(gain / price), price, row, step, precedence, limit=left)


def captured_energies(spectra: Spectra, ranks: Mapping[str, int]) -> dict[str, float]:
    """Sum up what ranks capture of each gradient.

    Args:
        spectra: Singular values per module name, in any order.
        ranks: Rank per module name.

    Returns:
        The sum of the squares of the largest ``rank`` values, per module name.
    """
    wanted = np.fromiter(map(ranks.__getitem__, spectra), dtype=np.intp, count=len(spectra))
    table = Falling.of(spectra).table(int(wanted.max(initial=0)))
    found = np.zeros(len(wanted))
    for rank in np.unique(wanted).tolist():
        rows = np.flatnonzero(wanted == rank)
        found[rows] = np.square(table[rows, :rank]).sum(axis=1)
    return dict(zip(spectra, found.tolist(), strict=True))


def highest_known_rank(spectra: Spectra, modules: Collection[TargetModule]) -> int | None:
    """Find the highest rank whose gain is known for every module that could have it.

    Args:
        spectra: Singular values per module name.
        modules: The modules.

    Returns:
        The fewest values of a module that has more than were recorded; ``None`` when all
        spectra are complete.
    """
    listed, known = Listed.of(modules), Falling.of(spectra).counts
    if list(spectra) != listed.names:
        by_name = dict(zip(spectra, known.tolist(), strict=True))
        known = np.array([*map(by_name.__getitem__, listed.names)], dtype=np.intp)
    short = known[known < listed.sizes]
    return int(short.min()) if len(short) else None


def check_spectra(falling: Falling, highest: Ranks) -> None:
    """Refuse spectra that no rule can share by.

    Args:
        falling: Singular values per module name.
        highest: Most ranks of each module, in their order.

    Raises:
        InvalidScore: A value is NaN, infinite or negative; the message names the module.
        InvalidOption: A module may get more ranks than it has values: what these would
            gain is not known.
    """  # noqa: DOC502 - a helper raises
    falling.check()
    for place in np.flatnonzero(falling.counts < highest)[:1].tolist():
        name, size = list(falling)[place], falling.counts[place]
        raise InvalidOption(
            f"rule 'spectral' knows what {size} ranks of {name!r} gain, not "
            f"{highest[place]}; give an r_max of at most {size}"
        )


def _relative_squares(falling: Falling, width: int) -> Floats:
    """Squares of the largest values of each module, falling, relative to the largest of all."""
    values = falling.table(max(1, width))
    relative = values / (values[:, 0].max(initial=0.0) or 1.0)
    return np.square(relative, out=relative)


def _step_gains(squares: Floats, units: Units) -> Floats:
    """What each step of a unit gains: the sum over its members and over its ranks."""
    ends = units.ladder.astype(np.intp)
    of_modules = squares[:, : max(1, ends[-1])]
    if len(units.starts) < len(units.columns):
        of_modules = np.add.reduceat(of_modules[units.columns], units.starts, axis=0)
    elif np.any(np.diff(units.columns) != 1):
        of_modules = of_modules[units.columns]
    if len(ends) == ends[-1] + 1:
        return of_modules
    return np.add.reduceat(of_modules, ends[:-1], axis=1) if len(ends) > 1 else of_modules


def _open_steps(lowest: Indices, highest: Indices) -> tuple[Indices, Indices]:
    """Row and number of every step between the bounds."""
    room = highest - lowest
    row = np.repeat(np.arange(len(room)), room)
    return row, np.arange(len(row)) - np.repeat(np.cumsum(room) - room - lowest, room)


def _leading_bits(values: Floats) -> Floats:
    """The values, none of which is negative, with mantissas rounded to so many bits: in place."""
    dropped = np.int64(53 - _TIE_BITS)  # the first bit of a mantissa is not stored
    bits = values.view(np.int64)
    bits += np.int64(1) << (dropped - 1)
    bits >>= dropped
    bits <<= dropped
    return values


def _precedence(gains: Floats, units: Units) -> Indices:
    """Place of each row in a tie: larger gains first, one by one, then the first name."""
    n_rows = len(gains)
    place = np.zeros(n_rows, dtype=np.intp)
    for step in range(int(units.highest.max(initial=0))):
        # A row that has no such step comes before those that have.
        gain = np.where(step < units.highest, -gains[:, step], -np.inf)
        order = np.lexsort((gain, place))
        sorted_gain, sorted_place = gain[order], place[order]
        is_new = (sorted_place[1:] != sorted_place[:-1]) | (sorted_gain[1:] != sorted_gain[:-1])
        place[order] = np.concatenate([[0], np.cumsum(is_new)])
        if is_new.all():
            return place
    by_name = np.empty(n_rows, dtype=np.intp)
    by_name[units.ties] = np.arange(n_rows)
    place[np.lexsort((by_name, place))] = np.arange(n_rows)
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
