"""Refuse statistics that initial weights cannot be made of, by name and with the way out."""

from collections.abc import Iterable

from fimlora.adapter.initial.registry import find_initial
from fimlora.errors import InvalidOption
from fimlora.plan import TargetModule
from fimlora.statistics import Statistics
from fimlora.statistics.options import Record

# What a record leaves in statistics.
_GROUPS = {
    Record.INPUT_COMPONENTS: ("input_components",),
    Record.GRADIENT_FACTORS: ("gradient_left", "gradient_values", "gradient_right"),
    Record.PROJECTED_GRADIENT: ("gradient_projected",),
}


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
