"""Rank drift between two results: pure arithmetic on two rank maps."""

from fimlora_contract.rank_maps import RankMap
from fimlora_contract.rank_patterns import RankChange, RankDrift


def rank_changes(a: RankMap, b: RankMap) -> list[RankChange]:
    """Modules whose ranks differ, the largest change first, then by name."""
    before = {module.name: module.rank for module in a.modules}
    after = {module.name: module.rank for module in b.modules}
    changes = [
        RankChange(
            name=name,
            rank_a=before.get(name, 0),
            rank_b=after.get(name, 0),
            change=after.get(name, 0) - before.get(name, 0),
        )
        for name in before | after
    ]
    return sorted((c for c in changes if c.change), key=lambda c: (-abs(c.change), c.name))


def rank_drift(a: RankMap, b: RankMap) -> RankDrift:
    """How far two rank maps lie apart in sum."""
    changes = rank_changes(a, b)
    moved = sum(abs(c.change) for c in changes)
    total = a.spent["ranks"] + b.spent["ranks"]
    return RankDrift(
        n_modules=len({m.name for m in (*a.modules, *b.modules)}),
        n_changed=len(changes),
        ranks_a=a.spent["ranks"],
        ranks_b=b.spent["ranks"],
        parameters_a=a.spent["parameters"],
        parameters_b=b.spent["parameters"],
        moved=moved,
        largest_change=max((abs(c.change) for c in changes), default=0),
        share_moved=moved / total if total else 0.0,
    )
