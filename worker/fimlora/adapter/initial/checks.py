"""Refuse what initial weights cannot be made for, by name and with the way out.

Nothing here imports torch: a service and a worker ask before anything is measured.
"""

from collections.abc import Iterable, Mapping

from fimlora.adapter.initial.registry import find_initial
from fimlora.errors import InvalidOption
from fimlora.plan import TargetModule
from fimlora.statistics import Statistics
from fimlora.statistics.groups import N_DIRECTIONS
from fimlora.statistics.options import Record

# What a record leaves in statistics.
_GROUPS = {
    Record.INPUT_COMPONENTS: ("input_components",),
    Record.GRADIENT_FACTORS: ("gradient_left", "gradient_values", "gradient_right"),
    Record.PROJECTED_GRADIENT: ("gradient_projected",),
}


def check_ceiling(name: str, modules: Iterable[TargetModule], r_max: Mapping[str, int]) -> None:
    """Refuse highest ranks that initial weights could not fill, before anything is measured.

    Args:
        name: Name of the initial weights.
        modules: The target modules.
        r_max: The highest rank that a plan may give a module, by its name.

    Raises:
        InvalidOption: A module could get more than is recorded for it.
    """
    most = find_initial(name).most_rank
    for module in modules:
        if most is not None and r_max[module.name] > most and _has_more(module):
            raise InvalidOption(
                f"init={name!r} fills ranks up to {most}, and r_max={r_max[module.name]} lets "
                f"{module.name!r} have more: give r_max={most} or less, or another init"
            )


def check_ranks(name: str, modules: Iterable[TargetModule], ranks: Mapping[str, int]) -> None:
    """Refuse ranks that initial weights cannot fill.

    Args:
        name: Name of the initial weights.
        modules: The target modules.
        ranks: Rank per module name.

    Raises:
        InvalidOption: One is higher than what is recorded.
    """
    most = find_initial(name).most_rank
    for module in modules:
        if most is not None and ranks[module.name] > most and _has_more(module):
            raise InvalidOption(
                f"init={name!r} fills ranks up to {most}, and {module.name!r} has rank "
                f"{ranks[module.name]}: plan with r_max={most} or less, or take another init"
            )


def check_statistics(
    name: str, statistics: Statistics | None, modules: Iterable[TargetModule]
) -> None:
    """Refuse statistics that lack what initial weights are made of.

    Args:
        name: Name of the initial weights.
        statistics: What `fimlora.measure` returned; ``None`` where nothing is at hand.
        modules: The target modules.

    Raises:
        InvalidOption: Something is missing.
    """
    records = sorted(find_initial(name).record)
    if not records:
        return
    then = f"measure with record={records[0].value!r}"
    if statistics is None:
        raise InvalidOption(f"init={name!r} is made of what was measured: {then}, and give "
                            "these statistics")  # fmt: skip
    for group in _GROUPS[records[0]]:
        arrays = statistics.quantities.get(group, {})
        if missing := [m.name for m in modules if m.name not in arrays]:
            raise InvalidOption(
                f"init={name!r} needs {group} of {missing[0]!r}, which these statistics do not "
                f"hold: {then}"
            )


def check_seed(name: str, statistics: Statistics | None, seed: int) -> None:
    """Refuse to draw another A than what was recorded is for.

    Args:
        name: Name of the initial weights.
        statistics: What `fimlora.measure` returned.
        seed: Seed of the A that is to be written.

    Raises:
        InvalidOption: It was measured for another seed.
    """
    if find_initial(name).reads_seed and statistics is not None and statistics.seed != seed:
        raise InvalidOption(
            f"init={name!r} with seed={seed}: gradients were projected by the A of seed="
            f"{statistics.seed}; write with that seed, or measure with this one"
        )


def _has_more(module: TargetModule) -> bool:
    """Whether a module has more directions than are recorded."""
    return min(module.d_in, module.d_out) > N_DIRECTIONS
