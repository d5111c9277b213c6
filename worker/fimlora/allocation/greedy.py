"""Steps taken by what they are worth until a limit is spent, without sorting all of them.

Of millions of steps most are far above or far below what is just afforded. Those above are taken
whatever their order, so only a narrow band around it is sorted, and what is below as far as there
is something left for it. Nothing here imports torch.
"""

import numpy as np
from numpy.typing import NDArray

from fimlora.allocation.units import Floats

Indices = NDArray[np.intp]
_N_BANDS = 1 << 16
_CHUNK = 1 << 12  # steps that are looked at together, once little is left


def take_by_worth(
    worth: Floats,
    price: Indices,
    row: Indices,
    step: Indices,
    precedence: Indices,
    *,
    limit: int,
    chunk: int = _CHUNK,
) -> Indices:
    """Take the steps of most worth that fit; the others are passed over.

    A row whose step did not fit takes none after it, though a step of a menu may cost less than
    the one before it.

    Args:
        worth: What each step is worth, not negative, and not more than the row's step before it.
        price: What it costs.
        row: The row it belongs to.
        step: Its number in the row; of equal worth the lowest goes first.
        precedence: Place of each row in a tie.
        limit: What may be spent.
        chunk: How many steps are looked at together, once little is left.

    Returns:
        How many steps of each row are taken.
    """
    is_sure = _surely_afforded(worth, price, limit)
    taken = np.bincount(row[is_sure], minlength=len(precedence))
    left = limit - int(price[is_sure].sum())
    rest = np.flatnonzero(~is_sure)
    closes = np.full(len(precedence), np.iinfo(np.intp).max)
    while len(rest := _still_open(rest, price, row, step, left, closes)):
        first = _most_worth(rest, worth, chunk)
        order = rest[first]
        order = order[np.lexsort((precedence[row[order]], step[order], -worth[order]))]
        fits = _that_fit(order, price, row, left)
        np.add.at(taken, row[order[fits]], 1)
        np.minimum.at(closes, row[order[~fits]], step[order[~fits]])
        left -= int(price[order[fits]].sum())
        rest = rest[~first]
    return taken


def take_from_table(
    worth: Floats,
    price: Floats,
    lowest: Indices,
    highest: Indices,
    precedence: Indices,
    *,
    limit: int,
) -> Indices:
    """Do what `take_by_worth` does, with steps that all rows have in one table.

    Those that are surely afforded are most of them, and are not listed one by one.

    Args:
        worth: What each step is worth, as there (rows x steps from the lowest of all).
        price: What a step of each row costs.
        lowest: The first step of each row.
        highest: The step of each row after its last.
        precedence: Place of each row in a tie.
        limit: What may be spent.

    Returns:
        As there.
    """
    first = int(lowest.min()) if len(lowest) else 0
    steps = first + np.arange(worth.shape[1])
    is_open = (steps >= lowest[:, None]) & (steps < highest[:, None])
    prices = np.broadcast_to(price.astype(np.intp)[:, None], worth.shape)
    is_sure = np.zeros(worth.shape, dtype=bool)
    if is_open.all():
        is_sure = _surely_afforded(worth.ravel(), prices.ravel(), limit).reshape(worth.shape)
    else:
        is_sure[is_open] = _surely_afforded(worth[is_open], prices[is_open], limit)
    taken = is_sure.sum(axis=1)
    row, column = np.nonzero(is_open & ~is_sure)
    left = limit - int(taken @ price.astype(np.intp))
    rest = take_by_worth(
        worth[row, column], prices[row, column], row, steps[column], precedence, limit=left
    )
    return np.asarray(taken + rest)


def _surely_afforded(worth: Floats, price: Indices, limit: int) -> NDArray[np.bool_]:
    """Steps of the bands of worth that fit as a whole; numbers in order are in order as bits."""
    if not len(worth):
        return np.zeros(0, dtype=bool)
    band = (worth + 0.0).view(np.int64)  # adding makes a plain 0 of a negative one
    lowest, highest = int(band.min()), int(band.max())
    shift = max(0, (highest - lowest).bit_length() - _N_BANDS.bit_length() + 1)
    band -= lowest
    band >>= np.int64(shift)
    costs = np.bincount(band, price)[::-1]  # whole numbers, far below 2^53
    n_fit = int(np.searchsorted(np.cumsum(costs), limit, side="right"))
    return np.asarray(band >= len(costs) - n_fit)


def _still_open(
    rest: Indices, price: Indices, row: Indices, step: Indices, left: int, closes: Indices
) -> Indices:
    """Leave out steps that do not fit, and those of their rows after them: they never will.

    Returns:
        The others; where each row closes is filled in.
    """
    dear = rest[price[rest] > left]
    np.minimum.at(closes, row[dear], step[dear])
    return rest[step[rest] < closes[row[rest]]]


def _most_worth(rest: Indices, worth: Floats, chunk: int) -> NDArray[np.bool_]:
    """The next steps in turn, with all that are worth as much as the last of them."""
    if len(rest) <= chunk:
        return np.ones(len(rest), dtype=bool)
    values = worth[rest]
    return np.asarray(values >= np.partition(values, len(rest) - chunk)[len(rest) - chunk])


def _that_fit(order: Indices, price: Indices, row: Indices, left: int) -> NDArray[np.bool_]:
    """Which steps are taken, one after the other, none of a row after one that did not fit."""
    n_fit = int(np.searchsorted(np.cumsum(price[order]), left, side="right"))
    fits = np.arange(len(order)) < n_fit
    left -= int(price[order[:n_fit]].sum())
    rest = order[n_fit:]
    cheapest = int(price[rest].min(initial=left + 1))
    is_closed: set[int] = set()
    pairs = zip(row[rest].tolist(), price[rest].tolist(), strict=True)
    for i, (its_row, cost) in enumerate(pairs, n_fit):
        if left < cheapest:
            break
        if cost <= left and its_row not in is_closed:
            fits[i] = True
            left -= cost
        else:
            is_closed.add(its_row)
    return fits
