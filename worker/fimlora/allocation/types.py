"""Modules by what they are: those an entry names, those of one type, those that share a rank.

Nothing here imports torch.
"""

import re
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase, translate
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fimlora.allocation.endings import Endings
from fimlora.allocation.listed import Listed
from fimlora.allocation.naming import Kinds
from fimlora.allocation.tied import Places, Tied
from fimlora.constraints import Constraints
from fimlora.errors import InvalidOption
from fimlora.plan import TOWERS, TargetModule, place_of
from fimlora.shares import type_name

_WILD = frozenset("*?[")
_FAMILY = "family:"
_NO_FAMILIES = (
    "they are all of one family, or were measured before families were recorded: `force` measures "
    "anew"
)
# What servers and fused checkpoints hold in one matrix, by the last part of names.
_FUSED = (
    ("q_proj", "k_proj", "v_proj"),
    ("query_proj", "key_proj", "value_proj"),
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("q", "k", "v"),
    ("wq", "wk", "wv"),
    ("gate_proj", "up_proj"),
    ("wi_0", "wi_1"),
    ("w1", "w3"),
)
_PACK = {leaf: leaves[0] for leaves in _FUSED for leaf in leaves}


class Names:
    """Modules that entries are looked up in.

    Args:
        names: Their names.
        families: What each is part of, of those for which that is known.

    Attributes:
        families: The families there are, in the modules' order.
    """

    def __init__(self, names: Iterable[str], families: Mapping[str, str] | None = None) -> None:
        self._names = list(names)
        self._family = dict(families or {})
        self.families = tuple(dict.fromkeys(self._family.values()))
        self._by_end: dict[int, Endings] = {}  # by how many parts the ending has

    def __len__(self) -> int:
        return len(self._names)

    def named_by(self, entry: str) -> list[str]:
        """Modules that an entry names: by name, by ending, by either with ``*``, or by family.

        ``family:language`` means that family and all that are part of it, as
        ``language.attention`` is.

        Returns:
            Their names.
        """
        return self.at(self.places_of(entry))

    def at(self, places: Places) -> list[str]:
        """The names at some places."""
        return [self._names[place] for place in places.tolist()]

    def places_of(self, entry: str) -> Places:
        """Do what `named_by` does, by the places of the modules."""
        if entry.startswith(_FAMILY):
            wanted = entry.removeprefix(_FAMILY)
            meant = {
                family
                for family in self.families
                if fnmatchcase(family, wanted) or fnmatchcase(family, f"{wanted}.*")
            }
            return np.flatnonzero([self._family.get(name) in meant for name in self._names])
        if _WILD.isdisjoint(entry):
            return self._ends(entry.count(".") + 1).find([entry])[0]
        match = re.compile(rf"(?:.*\.)?{translate(entry)}", re.DOTALL).match
        return np.flatnonzero([bool(match(name)) for name in self._names])

    def places_of_each(self, entries: Sequence[str]) -> tuple[Places, Places]:
        """Find the modules of many entries at once, none of which has a ``*`` or is a family.

        Returns:
            Their places, entry by entry, and how many each entry names.
        """
        n_parts = np.array([entry.count(".") for entry in entries], dtype=np.intp) + 1
        sizes = np.empty(len(entries), dtype=np.intp)
        some: list[tuple[Places, Places]] = []
        for n in np.unique(n_parts).tolist():
            which = np.flatnonzero(n_parts == n)
            places, sizes[which] = self._ends(n).find([entries[i] for i in which.tolist()])
            some.append((np.repeat(which, sizes[which]), places))
        entry_of, places = map(np.concatenate, zip(*some, strict=True))
        return places[np.argsort(entry_of, kind="stable")], sizes

    def _ends(self, n_parts: int) -> Endings:
        """Names by their endings of so many parts."""
        if n_parts not in self._by_end:
            self._by_end[n_parts] = Endings(self._names, n_parts)
        return self._by_end[n_parts]


_starred = lru_cache(maxsize=4096)(type_name)  # a model has many modules and few kinds


def resolve_groups(
    constraints: Constraints,
    modules: Sequence[TargetModule],
    not_targeted: Collection[str] = (),
) -> list[tuple[str, ...]]:
    """Find the modules that are tied to one rank.

    Args:
        constraints: What was asked for.
        modules: The target modules.
        not_targeted: Names that were meant to be targets and are none; entries may name them.

    Returns:
        Names of each group's modules, in the model's order; each module is in one at most.

    Raises:
        InvalidOption: An entry names no module, or a module is in two groups.
    """  # noqa: DOC502 - the helpers raise
    listed = Listed.of(modules)
    return tie(constraints, listed, not_targeted).named(listed.names)


def tie(constraints: Constraints, listed: Listed, not_targeted: Collection[str] = ()) -> Tied:
    """Do what `resolve_groups` does, by the places of the modules.

    Args:
        constraints: What was asked for.
        listed: The target modules.
        not_targeted: Names that were meant to be targets and are none; entries may name them.

    Returns:
        The groups.

    Raises:
        InvalidOption: As there.
    """  # noqa: DOC502 - the helpers raise
    if isinstance(constraints.groups, str):
        return _preset(listed, constraints.groups)
    if not constraints.groups:
        return Tied.of([])
    names = Names(listed.names, listed.families)
    found = _tied_at_once(constraints.groups, names)
    return _tied(constraints.groups, names, Names(not_targeted)) if found is None else found


def _tied(groups: Iterable[Iterable[str]], names: Names, others: Names) -> Tied:
    """Find groups one by one, and say what is wrong with the first that is.

    Returns:
        The groups.

    Raises:
        InvalidOption: As `resolve_groups` has it.
    """
    found: list[list[int]] = []
    seen: set[int] = set()
    for entries in groups:
        members = dict.fromkeys(
            place
            for entry in entries
            for place in _named(entry, names, others, "groups").tolist()
        )
        if both := seen.intersection(members):
            twice = min(names.at(np.array([*both], dtype=np.intp)))
            raise InvalidOption(
                f"groups must name each known module at most once; {twice!r} is in two"
            )
        seen.update(members)  # in place: an operator would copy all
        found.append(list(members))
    return Tied.of(found)


def _tied_at_once(groups: Sequence[Sequence[str]], names: Names) -> Tied | None:
    """Do what `_tied` does where each entry names modules that no other does.

    Returns:
        The groups; ``None`` where they are to be found one by one.
    """
    entries = [entry for group in groups for entry in group]
    text = "\n".join(entries)
    if not entries or _FAMILY in text or any(sign in text for sign in _WILD):
        return None
    places, sizes = names.places_of_each(entries)
    if sizes.min() == 0 or np.bincount(places).max() > 1:
        return None
    group_of = np.repeat(np.arange(len(groups)), [*map(len, groups)])
    of_groups = np.bincount(np.repeat(group_of, sizes), minlength=len(groups))
    return Tied(places, of_groups[of_groups > 0])


def resolve_types(
    constraints: Constraints,
    modules: Sequence[TargetModule],
    not_targeted: Collection[str] = (),
) -> dict[str, list[str]]:
    """Find the modules that each rule per type is about.

    Args:
        constraints: What was asked for.
        modules: The target modules.
        not_targeted: Names that were meant to be targets and are none; entries may name them.

    Returns:
        Names of modules by the entry of their type; a module is of one at most.

    Raises:
        InvalidOption: An entry names no module, or a module is of two types.
    """  # noqa: DOC502 - a helper raises
    listed = Listed.of(modules)
    return {
        entry: [listed.names[place] for place in places.tolist()]
        for entry, places in places_by_type(constraints, listed, not_targeted).items()
    }


def places_by_type(
    constraints: Constraints, listed: Listed, not_targeted: Collection[str] = ()
) -> dict[str, Places]:
    """Do what `resolve_types` does, by the places of the modules.

    Args:
        constraints: What was asked for.
        listed: The target modules.
        not_targeted: Names that were meant to be targets and are none; entries may name them.

    Returns:
        Places by the entry of the type, rising.

    Raises:
        InvalidOption: As there.
    """
    if not constraints.per_type:
        return {}
    names, others = Names(listed.names, listed.families), Names(not_targeted)
    entries, found = list(constraints.per_type), {}
    number_of = np.full(len(listed), -1, dtype=np.intp)
    for number, entry in enumerate(entries):
        found[entry] = _named(entry, names, others, "per_type")
        for place in found[entry][number_of[found[entry]] >= 0][:1].tolist():
            raise InvalidOption(
                f"per_type: {listed.names[place]!r} is both {entries[number_of[place]]!r} and "
                f"{entry!r}; a module may have one rule"
            )
        number_of[found[entry]] = number
    return found


def highest_ranks(
    constraints: Constraints,
    modules: Sequence[TargetModule],
    highest: int,
    not_targeted: Collection[str] = (),
) -> dict[str, int]:
    """Find the highest rank that each module could have if it were tied to no other.

    Args:
        constraints: Their rules per type, the allowed ranks, and what a server allows.
        modules: The target modules.
        highest: The highest rank of modules without a rule.
        not_targeted: Names that were meant to be targets and are none; entries may name them.

    Returns:
        Rank by module name.
    """
    found = dict.fromkeys((module.name for module in modules), highest)
    for entry, names in resolve_types(constraints, modules, not_targeted).items():
        found |= dict.fromkeys(names, constraints.type_bounds(entry, (1, highest))[1])
    cap = constraints.max_lora_rank
    for module in modules:
        rank = min(found[module.name], module.d_in, module.d_out)
        rank = rank if cap is None else min(rank, cap)
        if constraints.rank_menu:
            rank = max((some for some in constraints.rank_menu if some <= rank), default=0)
        found[module.name] = rank - rank % constraints.multiple_of
    return found


def _named(entry: str, names: Names, others: Names, option: str) -> Places:
    found = names.places_of(entry)
    if not len(found) and entry.startswith(_FAMILY):
        if _may_be_left_out(entry.removeprefix(_FAMILY), names, others):
            return found
        families = ", ".join(names.families)
        raise InvalidOption(
            f"{option}: {entry!r} is no family of the target modules; "
            + (f"theirs are: {families}" if families else _NO_FAMILIES)
        )
    if not len(found) and not len(others.places_of(entry)):
        raise InvalidOption(
            f"{option}: {entry!r} names no target module; give a module's name, an ending of "
            "names after a dot such as 'q_proj', or either with * for any characters"
        )
    return found


def _may_be_left_out(family: str, names: Names, others: Names) -> bool:
    """Whether the others may be that family: of them, only their names are known."""
    tower = family.partition(".")[0]
    is_one = any(fnmatchcase(each, tower) for each in TOWERS)
    return is_one and bool(names.families) and len(others) > 0


# What modules of one kind have in common with those that they are tied to, within a block or over
# all of a stack: of the stack that their blocks are in, and of the kind.
Key = Callable[[str, str], Hashable]


def _preset(listed: Listed, preset: str) -> Tied:
    """Find groups by what kinds have in common: there are few of them, and many modules."""
    names = listed.names
    kinds = listed.naming.kinds
    if not kinds.depth:
        return Tied.of([])  # no name has an index, so none is in a block
    key, is_in_block = _KEYS[preset]
    examples = [names[i] for i in np.unique(kinds.of, return_index=True)[1]]
    common = _numbers_of(key, examples)[kinds.of]
    blocks = _blocks(names, kinds) if is_in_block else np.zeros(len(names))
    places = np.flatnonzero(common >= 0)
    places = places[
        np.lexsort((blocks[places], common[places]))
    ]  # stable: in the model's order
    is_new = (np.diff(common[places]) != 0) | (np.diff(blocks[places]) != 0)
    starts = np.flatnonzero(np.append(len(places) > 0, is_new))
    tied = Tied(places, np.diff(starts, append=len(places)))
    several = np.flatnonzero(tied.sizes > 1)
    return tied.take(several[np.argsort(places[starts[several]])])


def _numbers_of(key: Key, names: Sequence[str]) -> NDArray[np.intp]:
    """A number for what each name's kind has in common with others, -1 where that is nothing."""
    numbers: dict[Hashable, int] = {None: -1}
    found = []
    for name in names:
        _, block, kind = place_of(name)
        common = None if block is None else key(_stack_of(block), kind)
        found.append(numbers.setdefault(common, len(numbers)))
    return np.array(found, dtype=np.intp)


def _blocks(names: Sequence[str], kinds: Kinds) -> NDArray[np.float64]:
    """Tell blocks of one stack apart: by their indices, unless several texts have one value."""
    if kinds.are_told:
        return kinds.depth[0]
    numbers: dict[str | None, int] = {}
    return np.array([float(numbers.setdefault(place_of(n)[1], len(numbers))) for n in names])


def _fused_key(stack: str, kind: str) -> Hashable:
    """What a server holds in one matrix: packed projections of one parent, and all its experts."""
    pack = _pack_of(kind)
    return None if pack is None else (stack, pack)


@lru_cache(maxsize=4096)
def _pack_of(kind: str) -> str | None:
    """One text for kinds that are packed together: it is hashed once, and a tuple every time."""
    starred = _starred(kind)
    parent, _, leaf = starred.rpartition(".")
    if leaf in _PACK:
        return "\n".join((parent, *_PACK[leaf]))
    return starred if starred != kind else None


def _stack_of(block: str) -> str:
    """The list that a block is in; models with two towers have two."""
    return block.rpartition(".")[0]


# By the name of the preset, and whether only modules of one block are tied.
_KEYS: dict[str, tuple[Key, bool]] = {
    "type": (lambda stack, kind: (stack, _starred(kind)), False),
    "fused": (_fused_key, True),
    "layer": (lambda stack, _: stack, True),
}
