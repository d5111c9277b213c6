"""The best choice of steps of unequal price, exactly, where the case is small enough for that.

By dynamic programming over what is spent: with each row of steps, the best gain of every total
is that of the totals before it plus what some of the row's steps gain. Nothing here imports torch.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Steps = NDArray[np.intp]
# Totals times rows times steps: some 0.1 s of one core.
MOST_WORK = 1 << 25
# Gains as whole numbers of so many bits, so that sums that are equal compare as equal.
_BITS = 36


def best_steps(
    gains: Sequence[NDArray[np.float64]],
    prices: Sequence[NDArray[np.intp]],
    limit: int,
    *,
    most_work: int = MOST_WORK,
) -> Steps | None:
    """Choose how many steps each row takes, so that all gain most within a limit.

    Of equal gains the one that spends more is taken, and of these the one that gives later rows
    fewer steps.

    Args:
        gains: What each step of a row gains, in the order in which steps are taken, by row.
        prices: What each costs.
        limit: What may be spent.
        most_work: Totals times rows times steps, beyond which nothing is computed.

    Returns:
        Steps per row; ``None`` where the case is too large.
    """
    grain = math.gcd(0, *np.unique(np.concatenate(prices)).tolist()) if len(prices) else 0
    n_totals = 1 + (limit // grain if grain else 0)
    longest = max(map(len, gains), default=0)
    if n_totals * len(gains) * max(1, longest) > most_work or longest > 255:
        return None
    largest = max((float(row.max()) for row in gains if len(row)), default=0.0) or 1.0
    best = np.full(n_totals, -1, dtype=np.int64)
    best[0] = 0
    chosen = np.zeros((len(gains), n_totals), dtype=np.uint8)
    costs = []
    for row, (gain, price) in enumerate(zip(gains, prices, strict=True)):
        values = np.cumsum(np.rint(gain / largest * 2**_BITS).astype(np.int64)).tolist()
        costs.append([0, *(np.cumsum(price) // max(1, grain)).tolist()])
        before = best.copy()
        for n_steps, (cost, value) in enumerate(zip(costs[row][1:], values, strict=True), 1):
            if cost >= n_totals:
                break
            some = before[: n_totals - cost]
            is_better = (some >= 0) & (some + value > best[cost:])
            best[cost:][is_better] = (some + value)[is_better]
            chosen[row, cost:][is_better] = n_steps
    total = n_totals - 1 - int(np.argmax(best[::-1]))
    steps = np.zeros(len(gains), dtype=np.intp)
    for row in range(len(gains) - 1, -1, -1):
        steps[row] = chosen[row, total]
        total -= costs[row][steps[row]]
    return steps
