"""Names of modules that are trained whole, or share a weight; nothing here imports torch."""

from collections.abc import Iterable, Mapping
from typing import Any

# Endings of the names of modules that PEFT trains in full in a classifier.
FULL_NAMES = ("classifier", "score")
# In a plan's provenance: parameters by name of what the request has trained whole besides, and
# which of these share a weight that their copies do not.
MODULES_TO_SAVE, UNTIED = "modules_to_save", "untied_by_saving"
# Target modules that are one weight with another module, by name, and that.
TIED = "tied_targets"
_MOST_SHOWN = 4


def is_inside(name: str, module: str) -> bool:
    """Tell whether a name is that of a module, or of something inside it.

    Args:
        name: The name.
        module: The module's name.

    Returns:
        Whether it is.
    """
    return name == module or name.startswith(f"{module}.")


def inside_saved(names: Iterable[str], saved: Iterable[str]) -> set[str]:
    """Find modules, or parameters of modules, that are trained whole.

    Args:
        names: Names.
        saved: Names of the modules that are.

    Returns:
        Those that are one of these, or inside one.
    """
    wholes = frozenset(saved)
    if not wholes:
        return set()
    return {name for name in names if name in wholes or not wholes.isdisjoint(_owners(name))}


def outermost(names: Iterable[str]) -> list[str]:
    """Leave out modules that are inside another one, which trains them with it.

    Args:
        names: Full names.

    Returns:
        Full names, sorted; none of them is inside another one.
    """
    found = frozenset(names)
    return sorted(name for name in found if found.isdisjoint(_owners(name)))


def _owners(name: str) -> list[str]:
    """The names of all modules that something is inside of: few, however many a model has."""
    return [name[:i] for i, character in enumerate(name) if character == "."]


def saved_facts(modules: Mapping[str, int], untied: Mapping[str, str]) -> dict[str, Any]:
    """Say in a plan's provenance which modules train whole beside its LoRA.

    Args:
        modules: Parameters by full name.
        untied: Of these, the ones that share a weight with another module, by name, and that.

    Returns:
        Facts; empty where no module does.
    """
    if not modules:
        return {}
    return {MODULES_TO_SAVE: dict(modules)} | ({UNTIED: dict(untied)} if untied else {})


def saved_sentence(provenance: Mapping[str, Any]) -> str:
    """Say for people what trains whole beside the budget.

    Args:
        provenance: The plan's.

    Returns:
        A sentence without a stop; empty where nothing does.
    """
    modules: Mapping[str, int] = provenance.get(MODULES_TO_SAVE) or {}
    if not modules:
        return ""
    shown = ", ".join([*modules][:_MOST_SHOWN])
    shown += f" and {len(modules) - _MOST_SHOWN} more" if len(modules) > _MOST_SHOWN else ""
    line = f"saved whole: {shown}, {sum(modules.values()):,} parameters, beside the budget"
    untied = [f"{name} from {other}" for name, other in (provenance.get(UNTIED) or {}).items()]
    return f"{line} (as copies, which unties {', '.join(untied)})" if untied else line


def checked_facts(provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    """Read a plan's provenance from a file that anybody may have written.

    Args:
        provenance: As it was read.

    Returns:
        The same.

    Raises:
        TypeError: What it says of modules that train whole, or are tied, is something else.
    """
    for key, kind, said in (
        (MODULES_TO_SAVE, int, "numbers"),
        (UNTIED, str, "names"),
        (TIED, str, "names"),
    ):
        facts = provenance.get(key)
        if facts is not None and not (
            isinstance(facts, Mapping)
            and all(isinstance(v, kind) and not isinstance(v, bool) for v in facts.values())
        ):
            raise TypeError(f"provenance.{key} must be an object of names and {said}")
    return provenance
