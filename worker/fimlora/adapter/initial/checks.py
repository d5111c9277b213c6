"""Refuse ranks that initial weights cannot fill, by name and with the way out.

Nothing here imports torch or numpy: a service and a worker ask before anything is measured.
"""

from collections.abc import Iterable, Mapping

from fimlora.adapter.initial.registry import KAIMING, find_initial
from fimlora.errors import InvalidOption
from fimlora.plan import TargetModule
from fimlora.statistics.groups import N_DIRECTIONS


def check_ceiling(name: str, modules: Iterable[TargetModule], r_max: Mapping[str, int]) -> None:
    """Refuse highest ranks that initial weights could not fill, before anything is measured.

    Args:
        name: Name of the initial weights.
        modules: The target modules.
        r_max: The highest rank that a plan may give a module, by its name.

    Raises:
        InvalidOption: A module could get more than is recorded for it.
    """
    modules = list(modules)
    _refuse_experts(name, modules)
    _refuse_tables(name, modules)
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
    modules = list(modules)
    _refuse_experts(name, modules)
    _refuse_tables(name, modules)
    most = find_initial(name).most_rank
    for module in modules:
        if most is not None and ranks[module.name] > most and _has_more(module):
            raise InvalidOption(
                f"init={name!r} fills ranks up to {most}, and {module.name!r} has rank "
                f"{ranks[module.name]}: plan with r_max={most} or less, or take another init"
            )


def _refuse_experts(name: str, modules: Iterable[TargetModule]) -> None:
    """Refuse fused experts to weights that are made of what is measured: each has a matrix."""
    modules = list(modules)
    selected = next((module.name for module in modules if module.experts is not None), None)
    if selected is not None and name != KAIMING:
        raise InvalidOption(
            f"init={name!r}: which experts of {selected!r} train is said by initial weights of "
            f"zero, which init={KAIMING!r} alone writes; take that, or select no experts"
        )
    experts = next((module.name for module in modules if module.n_experts is not None), None)
    if experts is not None and find_initial(name).record:
        raise InvalidOption(
            f"init={name!r} is made of what is recorded of one matrix, and {experts!r} holds those "
            "of all experts: take init='kaiming', or leave target_parameters out"
        )


def _refuse_tables(name: str, modules: Iterable[TargetModule]) -> None:
    """Refuse embeddings to all but LoRA's own start: theirs is the other way round."""
    table = next((module.name for module in modules if module.is_embedding), None)
    if table is not None and name != KAIMING:
        raise InvalidOption(
            f"init={name!r} is of linear maps, and {table!r} is an embedding, which begins with a "
            f"random B and an A of zero: take init={KAIMING!r}, or leave the embedding out"
        )


def _has_more(module: TargetModule) -> bool:
    """Whether a module has more directions than are recorded."""
    return min(module.d_in, module.d_out) > N_DIRECTIONS
