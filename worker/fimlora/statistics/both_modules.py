"""Which modules two runs have together, where rows of one have not reached a module."""

from collections.abc import Mapping

from fimlora.errors import InvalidStatistics
from fimlora.left_out import UNREACHED
from fimlora.plan import TargetModule

Modules = tuple[TargetModule, ...]
# Target modules, and by name why others are none.
Choice = tuple[Modules, Mapping[str, str]]


def of_both(mine: Choice, theirs: Choice) -> Choice:
    """Take the modules that either run has reached.

    Args:
        mine: Those of the one run.
        theirs: Those of the other.

    Returns:
        All of them in the order that both agree with, the one run's first where both leave
        that open; and what is still no target.

    Raises:
        InvalidStatistics: Something is a target in one run, and in the other neither that nor
            just not reached; or a reason or the order differs.
    """
    (modules, left_out), (other_modules, other_left_out) = mine, theirs
    _check_missing(other_modules, modules, left_out)
    _check_missing(modules, other_modules, other_left_out)
    both = _in_order(modules, other_modules)
    names = {module.name for module in both}
    remaining, others = (
        {name: reason for name, reason in reasons.items() if name not in names}
        for reasons in (left_out, other_left_out)
    )
    if remaining != others:
        raise InvalidStatistics(
            f"statistics differ in not_targeted: {remaining!r} and {others!r}; not merged"
        )
    return both, remaining


def _check_missing(wanted: Modules, modules: Modules, left_out: Mapping[str, str]) -> None:
    """Another choice of targets is another run: only what no row reached counts as zero."""
    by_name = {module.name: module for module in modules}
    for module in wanted:
        if by_name.get(module.name, module) != module or (
            module.name not in by_name and left_out.get(module.name) != UNREACHED
        ):
            raise InvalidStatistics("statistics differ in modules; not merged")


def _in_order(mine: Modules, theirs: Modules) -> Modules:
    """Insert what only the other one has before the next module that both have."""
    found, rest = list[TargetModule](), list(mine)
    for module in theirs:
        if module in rest:
            at = rest.index(module)
            found += rest[: at + 1]
            rest = rest[at + 1 :]
        elif module in mine:
            raise InvalidStatistics("statistics differ in modules; not merged")
        else:
            found.append(module)
    return (*found, *rest)
