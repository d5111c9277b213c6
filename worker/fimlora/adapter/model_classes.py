"""Which model class an adapter's names are for, and names that hold for two of them.

A checkpoint of text and images may be loaded as its text model alone, or as the whole. The
same module has another name then: ``model.layers.0.mlp.up_proj`` in the one,
``model.language_model.layers.0.mlp.up_proj`` in the other. PEFT takes a name as an ending,
so what is left of it after the first part may be the name of one module in either tree.

What is found goes into the plan's provenance, as it must be known wherever the plan is written.
Nothing here imports torch or PEFT.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fimlora.adapter.config import LEFT_OUT, dotted_ends
from fimlora.plan import TargetModule

MODEL_CLASS = "model_class"
ALSO_FOR = "names_also_hold_for"
NOT_FOR = "names_do_not_hold_for"


@dataclass(frozen=True, slots=True)
class NamedTree:
    """The modules of a model class.

    Attributes:
        model_class: Its name.
        modules: Names of all modules.
    """

    model_class: str
    modules: Sequence[str]


def name_facts(
    targets: Iterable[TargetModule],
    tree: NamedTree,
    other: NamedTree | None = None,
    *,
    saved: Collection[str] = (),
) -> dict[str, Any]:
    """Say which classes the names of an adapter are for.

    Args:
        targets: The target modules.
        tree: The tree that they are in.
        other: What the same checkpoint is as another class.
        saved: Names of the modules that train whole: PEFT takes these as endings without a dot
            before, so that ``norm`` would mean ``input_layernorm``, too.

    Returns:
        Facts for the plan's provenance: the class; if there is another, whether names hold
        for that one, too, and which first part they leave out then.
    """
    facts: dict[str, Any] = {MODEL_CLASS: tree.model_class}
    if other is None:
        return facts
    left_out = _shared_start([m.name for m in targets], saved, (tree.modules, other.modules))
    if left_out is None:
        return facts | {NOT_FOR: other.model_class}
    return facts | {ALSO_FOR: other.model_class, LEFT_OUT: left_out}


def counterparts(
    targets: Iterable[TargetModule], other: NamedTree, left_out: str
) -> dict[str, str]:
    """Find the modules that shared names mean in the other tree.

    Args:
        targets: The target modules.
        other: The other tree.
        left_out: The first part that names leave out.

    Returns:
        Name in the other tree by name in the own one.
    """
    by_end = {end: name for name in other.modules for end in dotted_ends(name)}
    return {m.name: by_end[m.name.removeprefix(left_out)] for m in targets}


def _shared_start(
    names: Sequence[str], saved: Collection[str], trees: Sequence[Sequence[str]]
) -> str | None:
    """The shortest start without which every name ends one module's name in both trees."""
    counts = [Counter(end for n in tree for end in dotted_ends(n)) for tree in trees]
    parts = names[0].split(".")
    for i in range(len(parts)):
        start = ".".join([*parts[:i], ""])
        if not all(name.startswith(start) for name in names):
            return None
        ends = [name.removeprefix(start) for name in names]
        if all(count[end] == 1 for count in counts for end in ends):
            left = [name.removeprefix(start) for name in saved]
            return start if all(_each_ends_one(left, tree) for tree in trees) else None
    return None


def _each_ends_one(ends: Collection[str], names: Iterable[str]) -> bool:
    """Whether each is the end of one name, as PEFT takes modules that train whole."""
    wanted = set(ends)
    lengths = {len(end) for end in wanted}  # far fewer than names
    found = Counter(name[-n:] for name in names for n in lengths if name[-n:] in wanted)
    return all(found[end] == 1 for end in wanted)


def sentence(facts: Mapping[str, Any]) -> str:
    """Say for people which classes the names are for.

    Args:
        facts: The plan's provenance.

    Returns:
        A sentence; empty where nothing is known.
    """
    if not (model_class := facts.get(MODEL_CLASS)):
        return ""
    if also := facts.get(ALSO_FOR):
        return f"names are for {model_class}; those of the config hold for {also}, too"
    if other := facts.get(NOT_FOR):
        return f"names are for {model_class}, and not for {other}, which has others"
    return f"names are for {model_class}"
