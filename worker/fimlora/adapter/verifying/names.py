"""Which seen module is which planned one, where a wrapper has given it another name.

A wrapper puts parts before a name (``base_model.model.``, ``module.``), or into it
(``language_model.``, ``_orig_mod.``); what comes behind its last wrapper is the same in both. Nothing here imports torch.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

from fimlora.adapter.config import LEFT_OUT, dotted_ends
from fimlora.plan import BLOCK_INDEX, RankPlan

# Parts that wrappers of PEFT, torch and its parallel training put into names.
_WRAPPERS = frozenset(
    {
        *("base_model", "base_layer", "module", "_orig_mod"),
        *("_fsdp_wrapped_module", "_checkpoint_wrapped_module"),
    }
)


def other_names(missing: Iterable[str], extra: Collection[str]) -> dict[str, str]:
    """Find what planned modules are called in the adapter.

    Args:
        missing: Planned names that the adapter does not have.
        extra: Names that the adapter has and the plan does not.

    Returns:
        The name in the adapter by the planned one, where one and only one can be meant.
    """
    by_end = defaultdict(list)
    for name in extra:
        for end in dotted_ends(without_wrappers(name)):
            by_end[end].append(name)
    found: dict[str, str] = {}
    for name in missing:
        for end in _telling_ends(name):
            if hits := by_end.get(end):
                if len(hits) == 1:
                    found[name] = hits[0]
                break
    taken = [*found.values()]
    return {name: other for name, other in found.items() if taken.count(other) == 1}


def hold_by_plan(plan: RankPlan, pairs: Mapping[str, str]) -> bool:
    """Tell whether the plan's names were made to hold under these other names, too.

    Args:
        plan: The plan.
        pairs: The name in the adapter by the planned one.

    Returns:
        Whether they were: a config's names may leave out a first part, so as to be names of
        modules of two classes.
    """
    left_out = plan.provenance.get(LEFT_OUT)
    if left_out is None or any(without_wrappers(o) != o for o in pairs.values()):
        return False
    return all(
        other == (rest := name.removeprefix(left_out)) or other.endswith(f".{rest}")
        for name, other in pairs.items()
    )


def without_wrappers(name: str) -> str:
    """Leave a wrapper's parts out of a name.

    Args:
        name: A module's name.

    Returns:
        The name; ``model`` goes only where it follows ``base_model``.
    """
    parts = name.split(".")
    kept = [
        part
        for i, part in enumerate(parts)
        if part not in _WRAPPERS
        and not (part == "model" and i and parts[i - 1] == "base_model")
    ]
    return ".".join(kept)


def _telling_ends(name: str) -> list[str]:
    """The ends of a name that tell its block, longest first; all where it is in none."""
    ends = dotted_ends(name)
    if not (block := BLOCK_INDEX.search(name)):
        return ends
    shortest = len(name) - (name.rfind(".", 0, block.start()) + 1)
    return [end for end in ends if len(end) >= shortest]
