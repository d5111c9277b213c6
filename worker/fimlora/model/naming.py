"""What names, name endings and expressions mean in a model, and how a wrong one is refused."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence, Set

from torch import nn

from fimlora.errors import InvalidOption, UnknownTarget, UnsupportedModule
from fimlora.model.embeddings import is_table
from fimlora.model.expressions import matching
from fimlora.model.linear_kinds import is_linear_map

_MAX_NAMES_IN_MESSAGE = 5
Modules = Mapping[str, nn.Module]


def is_linear(module: nn.Module) -> bool:
    """Tell a linear map that can be measured.

    Returns:
        Whether it is one.
    """
    return is_linear_map(module)


def is_ending(entry: str, name: str) -> bool:
    """Tell what an entry means: a name, or names that end in it after a dot.

    Returns:
        Whether it means this one.
    """
    return name == entry or name.endswith(f".{entry}")


def named_endings(names: Iterable[str]) -> dict[str, list[str]]:
    """Find names by each of their dotted endings.

    Args:
        names: The names.

    Returns:
        Names by ending, the whole name included.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        for start in range(len(parts)):
            found.setdefault(".".join(parts[start:]), []).append(name)
    return found


def linear_maps(given: str, names: set[str], modules: Modules, excluded: Set[str]) -> set[str]:
    """Pick the linear maps among some modules, excluded or not.

    Args:
        given: What means these modules, for errors.
        names: Their names.
        modules: The modules of the model by name.
        excluded: Names that are left out, whatever they are.

    Returns:
        Their names.

    Raises:
        UnsupportedModule: There is another module, and it is not excluded.
    """
    others = {n for n in names if not is_linear(modules[n]) and not is_table(modules[n])}
    for name in sorted(others - excluded):
        raise UnsupportedModule(
            f"{given} matches {name!r}, a "
            f"{type(modules[name]).__name__}; only Linear, Conv1D and plain Embedding can be measured: "
            "exclude_modules leaves others out"
        )
    return names - others


def names_of_expression(
    expression: str, modules: Modules, fused: Sequence[str], excluded: Set[str]
) -> set[str]:
    """Find the linear maps that an expression over full names means.

    Args:
        expression: The expression.
        modules: The modules of the model by name.
        fused: Names of its fused experts.
        excluded: Names that are left out, whatever they are.

    Returns:
        Names of linear maps, those that are left out included.

    Raises:
        UnknownTarget: It means nothing.
    """
    names = matching("target_modules", expression, modules)
    if not names:
        matched = sorted(matching("target_modules", expression, fused))
        _refuse_fused(f"target_modules={expression!r}", matched)
        raise UnknownTarget(
            f"target_modules={expression!r} matches no full module name (a string is a regular "
            f"expression; use a list for name endings). {near_names(expression, modules)}"
        )
    return linear_maps(f"target_modules entry {expression!r}", names, modules, excluded)


def names_of_entries(
    entries: Sequence[str], modules: Modules, fused: Sequence[str], excluded: Set[str]
) -> set[str]:
    """Find the linear maps that names and endings mean.

    Args:
        entries: Names and endings.
        modules: The modules of the model by name.
        fused: Names of its fused experts.
        excluded: Names that are left out, whatever they are.

    Returns:
        Names of linear maps, those that are left out included.

    Raises:
        InvalidOption: There is no entry.
        UnknownTarget: One means nothing.
    """
    if not entries:
        raise InvalidOption("target_modules is empty: name at least one module")
    found: set[str] = set()
    endings = named_endings(modules)
    for entry in entries:
        names = set(endings.get(entry, ()))
        if not names:
            matched = [name for name in fused if is_ending(entry, name)]
            _refuse_fused(f"target_modules entry {entry!r}", matched)
            raise UnknownTarget(
                f"no module is named {entry!r} or ends in '.{entry}'. "
                f"{near_names(entry, modules)}"
            )
        found |= linear_maps(f"target_modules entry {entry!r}", names, modules, excluded)
    return found


def names_excluded(
    exclude_modules: str | Sequence[str] | None, modules: Modules, fused: Sequence[str]
) -> set[str]:
    """Find what is to be left out; an entry that leaves nothing out is a mistake.

    Args:
        exclude_modules: Names and endings, or an expression over full names.
        modules: The modules of the model by name.
        fused: Names of its fused experts.

    Returns:
        Names of modules and of fused experts.

    Raises:
        UnknownTarget: The expression, or an entry, leaves nothing out.
    """
    if exclude_modules is None:
        return set()
    if isinstance(exclude_modules, str):
        names = matching("exclude_modules", exclude_modules, [*modules, *fused])
        if not any(name in fused or is_linear(modules[name]) for name in names):
            raise UnknownTarget(
                f"exclude_modules={exclude_modules!r} matches no full name of a linear map. "
                f"{near_names(exclude_modules, modules)}"
            )
        return names
    endings = named_endings([*modules, *fused])
    return {name for e in exclude_modules for name in _left_out_by(e, endings, modules)}


def near_names(entry: str, modules: Modules) -> str:
    """Suggest names of linear maps.

    Args:
        entry: What was given.
        modules: The modules of the model by name.

    Returns:
        A sentence.
    """
    linear = [name for name, module in modules.items() if is_linear(module)]
    endings = sorted({name.rsplit(".", 1)[-1] for name in linear})
    last = entry.rsplit(".", 1)[-1]
    pool = linear if "." in entry else endings
    near = difflib.get_close_matches(entry, pool, n=_MAX_NAMES_IN_MESSAGE, cutoff=0.5)
    near = near or difflib.get_close_matches(last, endings, n=_MAX_NAMES_IN_MESSAGE, cutoff=0.5)
    return (
        f"Near names: {', '.join(near)}"
        if near
        else f"Linear maps end in: {', '.join(endings)}"
    )


def _left_out_by(
    entry: str, endings: Mapping[str, list[str]], modules: Modules
) -> Sequence[str]:
    names = endings.get(entry)
    if not names:
        raise UnknownTarget(
            f"exclude_modules entry {entry!r} is no name of a module and no end of one. "
            f"{near_names(entry, modules)}"
        )
    if all(name in modules and any(modules[name].children()) for name in names):
        raise UnknownTarget(
            f"exclude_modules entry {entry!r} names {min(names)!r}, which holds modules and is no "
            "target itself; as in PEFT, an expression leaves out what is inside: "
            f"'.*{re.escape(entry)}\\..*'"
        )
    return names


def _refuse_fused(given: str, names: Sequence[str]) -> None:
    """Refuse targets that are fused experts only.

    Raises:
        UnsupportedModule: There are some.
    """
    if names:
        raise UnsupportedModule(
            f"{given} matches {names[0]!r}, which holds the matrices of all experts in one "
            "parameter; ask for fused experts by target_parameters, and name Linear or Conv1D "
            "modules only here"
        )
