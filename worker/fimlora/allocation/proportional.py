"""Bounded proportional shares in whole ranks: what one plan and both controls are solved by.

`fimlora.allocation.many` has the mathematics, for many score vectors at once; here is one of
them, by name. Nothing here imports torch.
"""

from collections.abc import Collection, Iterable, Mapping

import numpy as np

from fimlora.allocation.many import share_steps
from fimlora.allocation.units import Floats, Units, gather_units
from fimlora.errors import InvalidScore


def allocate_ranks(
    scores: Mapping[str, float],
    *,
    limit: int,
    lowest: Mapping[str, int],
    highest: Mapping[str, int],
    weights: Mapping[str, int] | None = None,
    multiple_of: int = 1,
    rank_menu: Collection[int] = (),
    groups: Iterable[Collection[str]] = (),
) -> dict[str, int]:
    """Share a limit over modules in proportion to their scores, within bounds.

    Args:
        scores: Score per module name; finite and not negative.
        limit: What may be spent: ranks in total, or parameters when ``weights`` are costs.
        lowest: Fewest ranks per module name, at least 0.
        highest: Most ranks per module name.
        weights: What one rank of each module costs; ``None`` counts ranks.
        multiple_of: Every rank is a multiple of this.
        rank_menu: The ranks that are allowed, in rising order; empty for any.
        groups: Names of modules that must get one common rank.

    Returns:
        Rank per module name, in the order of ``scores``; see `share_limit`.
    """
    units = gather_units(
        scores,
        lowest=lowest,
        highest=highest,
        weights=weights,
        multiple_of=multiple_of,
        rank_menu=rank_menu,
        groups=groups,
    )
    return share_limit(units, scores, limit)


def share_limit(units: Units, scores: Mapping[str, float], limit: int) -> dict[str, int]:
    """Share a limit over units in proportion to their scores, within their bounds.

    Every unit first gets the floor of its quota. What is left is handed out one step at a
    time by largest remainder; ties go to the higher score, then to the first name. A limit
    in ranks is met exactly, unless tied ranks, multiples or a menu cannot add up to it. Of any
    other, less than the cheapest step still open stays unspent, and one above what the
    bounds permit leaves every unit at its highest rank.

    Args:
        units: The modules; a group is shared to by the mean of its scores.
        scores: Score per module name, in the order of the units' modules.
        limit: Ranks in total, or parameters when the units are weighted by cost.

    Returns:
        Rank per module name, in the order of ``scores``.
    """
    values = checked_scores(scores)
    steps = share_steps(units, units.scores(values[None]), units.affordable(limit))
    return units.named(steps[0], scores)


def checked_scores(scores: Mapping[str, float]) -> Floats:
    """See that scores are such as a rule can share by.

    Args:
        scores: Score per module name.

    Returns:
        The scores, in their order.

    Raises:
        InvalidScore: A score is NaN, infinite or negative; the message names the module.
    """
    values = np.fromiter(scores.values(), dtype=np.float64, count=len(scores))
    if np.all((values >= 0) & (values < np.inf)):
        return values
    name = next(name for name, score in scores.items() if not 0 <= score < np.inf)
    raise InvalidScore(
        f"the score of {name!r} is {scores[name]}; scores must be finite and not negative"
    )
