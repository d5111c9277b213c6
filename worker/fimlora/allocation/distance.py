"""How far two plans are apart: the share of what they spend that lies elsewhere.

Nothing here imports torch.
"""

import math
from collections.abc import Mapping

from fimlora.errors import InvalidOption
from fimlora.plan import RankPlan


def moved_share(
    a: Mapping[str, int], b: Mapping[str, int], *, costs: Mapping[str, int] | None = None
) -> float:
    """What has to be moved to turn one assignment of ranks into another, as a share.

    ``sum w |r_a - r_b| / (sum w r_a + sum w r_b)``: where both spend the same, that is half
    the sum of the differences over what one of them spends. It is the same from either side,
    0 for equal ranks and 1 for those that share no module.

    Args:
        a: Rank per module name.
        b: Rank per module name, of the same modules.
        costs: What one rank of each module costs, for a budget in parameters; ``None`` counts
            ranks.

    Returns:
        The share, from 0 to 1; 0 if neither has any ranks.

    Raises:
        InvalidOption: They name other modules, or costs lack one.
    """
    if odd := sorted(a.keys() ^ b.keys()):
        raise InvalidOption(
            f"only ranks of the same modules can be compared; {odd[:5]} are in one only"
        )
    if costs is not None and (lacking := sorted(a.keys() - costs.keys())):
        raise InvalidOption(f"costs must name every module; {lacking[:5]} are missing")
    weights = dict.fromkeys(a, 1) if costs is None else costs
    apart = math.fsum(weights[name] * abs(rank - b[name]) for name, rank in a.items())
    spent = math.fsum(weights[name] * (rank + b[name]) for name, rank in a.items())
    return apart / spent if spent else 0.0


def plans_apart(a: RankPlan, b: RankPlan) -> float:
    """`moved_share` of two plans, in what their budget is counted in.

    Args:
        a: A plan.
        b: A plan of the same modules, and of a budget of the same kind.

    Returns:
        The share of the ranks that lie elsewhere at a budget in ranks, else of the parameters.

    Raises:
        InvalidOption: One budget is in ranks and the other is not, or the modules differ.
    """
    in_ranks = {plan.budget.unit == "rank" for plan in (a, b)}
    if len(in_ranks) > 1:
        raise InvalidOption(
            f"budgets in {a.budget.unit} and {b.budget.unit} are not counted alike; compare "
            "plans of one kind of budget"
        )
    costs = None if in_ranks.pop() else {m.name: m.cost for m in a.modules}
    return moved_share(a.ranks, b.ranks, costs=costs)
