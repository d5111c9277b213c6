"""The plan as PEFT's ``adapter_config.json``.

Layout B gives every module its rank and its alpha under its plain full name; layout C has
one common rank, to which narrower modules are padded with zeros. In both, ``alpha / rank``
is the same number for every module, unless one alpha was asked for, which layout C cannot
express: a padded module would train at the scale of the widest. Nothing here imports torch or PEFT.

PEFT reads a pattern key as a regular expression that must end where the module's name ends
and begin at its beginning or after a dot. A full name is thus also a suffix of a longer
one; then, and only then, the key is anchored with ``^``, which PEFT knows since 0.15.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fimlora.errors import InvalidOption, UnsupportedModule
from fimlora.plan import RankPlan
from fimlora.scaling import alpha_of
from fimlora.whole_names import FULL_NAMES, MODULES_TO_SAVE, outermost

LAYOUTS = ("B", "C")
PADDED_RANKS = (8, 16, 32, 64, 128, 256)
TASK_TYPES = (
    "CAUSAL_LM",
    "FEATURE_EXTRACTION",
    "QUESTION_ANS",
    "SEQ_2_SEQ_LM",
    "SEQ_CLS",
    "TOKEN_CLS",
)
WRAPPER_PREFIX = "base_model.model."
# In a plan's provenance; see `fimlora.adapter.model_classes`.
LEFT_OUT = "left_out_of_names"


def build_adapter_config(
    plan: RankPlan,
    *,
    base_model: str | None,
    task_type: str | None,
    layout: str = "B",
    module_names: Iterable[str] | None = None,
    target_modules: Iterable[str] | None = None,
    modules_to_save: Iterable[str] | None = None,
) -> dict[str, Any]:
    """Fill in the fields that every PEFT since 0.11 loads without a warning, and no other.

    Fused experts take one field more, ``target_parameters``, which PEFT has had since 0.17.

    Args:
        plan: The plan; modules of rank 0 are not targeted.
        base_model: Hub id or path of the base model; ``None`` where neither is known.
        task_type: One of PEFT's task types, or ``None``.
        layout: ``B`` for patterns, ``C`` for one padded rank.
        module_names: Names of all modules of the base model; they allow short names in
            ``target_modules``, which are full names otherwise.
        target_modules: Names that are known to target these modules and no other; they
            are written as they stand.
        modules_to_save: Full names of modules that are trained and stored in full, such as
            a new head, see `modules_in_full`; beside those that the plan's provenance names.

    Returns:
        The content of ``adapter_config.json``.

    Raises:
        InvalidOption: The task type or the layout is unknown, or no module has a rank.
    """
    if task_type is not None and task_type not in TASK_TYPES:
        raise InvalidOption(f"task_type={task_type!r}; allowed are {', '.join(TASK_TYPES)}")
    if layout not in LAYOUTS:
        raise InvalidOption(f"layout={layout!r}; allowed are {', '.join(LAYOUTS)}")
    left_out = plan.provenance.get(LEFT_OUT, "")
    targets = [m for m in plan.modules if plan.ranks[m.name] > 0]
    if not targets:
        raise InvalidOption("every module of the plan has rank 0: there is no adapter to write")
    ranks = {m.name: plan.ranks[m.name] for m in targets}
    if layout == "B":
        alphas = {name: plan.alpha(name) for name in ranks}
        patterns = rank_patterns(ranks, alphas, left_out=left_out)
        rank, alpha = max(ranks.values()), alphas[max(sorted(ranks), key=ranks.__getitem__)]
    else:
        patterns = {}, {}
        rank = padded_rank(plan)
        alpha = alpha_of(rank, scale=common_scale(plan))
    experts = sorted(m.name.removeprefix(left_out) for m in targets if m.n_experts is not None)
    linear = [m.name for m in targets if m.n_experts is None]
    maps = [m for m in targets if not m.is_embedding]
    # Names of a plan that is written again have lost their first part already.
    given = [n.removeprefix(left_out) for n in modules_to_save or ()]
    own = [n.removeprefix(left_out) for n in plan.provenance.get(MODULES_TO_SAVE) or ()]
    return {
        **({"target_parameters": experts} if experts else {}),
        "alpha_pattern": patterns[1],
        "base_model_name_or_path": base_model,
        "bias": "none",
        "fan_in_fan_out": bool(maps) and all(m.fan_in_fan_out for m in maps),
        "inference_mode": False,
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "modules_to_save": outermost([*given, *own]) or None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": patterns[0],
        "target_modules": (
            target_names(linear, module_names, left_out=left_out)
            if target_modules is None
            else sorted(target_modules)
        ),
        "task_type": task_type,
        "use_rslora": layout == "B" and plan.scaling == "rslora",
    }


def rank_patterns(
    ranks: Mapping[str, int], alphas: Mapping[str, int | float], *, left_out: str = ""
) -> tuple[dict[str, int], dict[str, int | float]]:
    """Name rank and alpha of every target that differs from the defaults.

    The defaults are those of a module with the highest rank, so that a key which some
    reader loses shows as a module that is too large, and not as a poorer adapter.

    Args:
        ranks: Rank of every target, above 0, by full name in the base model.
        alphas: Alpha of every target.
        left_out: The first part of every name that keys leave out, as the rest is known to
            name one module only.

    Returns:
        ``rank_pattern`` and ``alpha_pattern``, with the same keys in the same order; no key
        matches a second target.
    """
    widest = max(sorted(ranks), key=ranks.__getitem__)
    defaults = ranks[widest], alphas[widest]
    longer = {end for name in ranks for end in dotted_ends(name)[1:]}
    keys = {
        name: f"^{name}" if name in longer else name.removeprefix(left_out)
        for name in sorted(ranks)
        if (ranks[name], alphas[name]) != defaults
    }
    return (
        {key: ranks[name] for name, key in keys.items()},
        {key: alphas[name] for name, key in keys.items()},
    )


def common_scale(plan: RankPlan) -> int | float:
    """The one scale of all modules, which layout C and servers without patterns have.

    Args:
        plan: The plan.

    Returns:
        The scale.

    Raises:
        InvalidOption: Modules differ in it.
    """
    scales = {plan.scale_of(name) for name, rank in plan.ranks.items() if rank}
    if len(scales) > 1:
        raise InvalidOption(
            f"layout C has one scale for all modules, and with scaling {plan.scaling!r} those of "
            f"this plan go from {min(scales):g} to {max(scales):g}: take layout B, or scale in "
            "place of alpha"
        )
    return scales.pop()


def padded_rank(plan: RankPlan) -> int:
    """The common rank of layout C.

    Args:
        plan: The plan.

    Returns:
        The smallest rank that servers accept and no module exceeds.

    Raises:
        InvalidOption: A module's rank is above all of those.
    """
    highest = max(plan.ranks.values())
    for rank in PADDED_RANKS:
        if rank >= highest:
            return rank
    raise InvalidOption(
        f"layout C pads to at most rank {PADDED_RANKS[-1]}, the plan goes up to {highest}"
    )


def target_names(
    names: Iterable[str], module_names: Iterable[str] | None = None, *, left_out: str = ""
) -> list[str]:
    """Shortest names that make PEFT target exactly these modules.

    Args:
        names: Full names of the modules to target.
        module_names: Names of all modules of the base model. ``None`` allows full names
            only, as any shorter one might hit a module it should not.
        left_out: The first part of every name that no result has, as the rest is known to
            name one module only.

    Returns:
        Sorted leaf names, or longer endings where a leaf name would hit another module.

    Raises:
        UnsupportedModule: A name cannot be told from another one, or is no plain name.
    """
    targets = set(names)
    for name in targets:
        if not re.fullmatch(r"[\w.-]+", name):
            raise UnsupportedModule(f"{name!r}: PEFT reads names as regular expressions")
    if module_names is None:
        return sorted(name.removeprefix(left_out) for name in targets)
    others = {end for name in set(module_names) - targets for end in dotted_ends(name)}
    found = set()
    for name in targets:
        rest = name.removeprefix(left_out)
        ends = [end for end in reversed(dotted_ends(rest)) if end not in others]
        if not ends:
            raise UnsupportedModule(
                f"{name!r} also ends the name of a module outside the plan, so PEFT would "
                "adapt both; target both or neither"
            )
        found.add(ends[0])
    return sorted(found)


def modules_in_full(names: Iterable[str]) -> list[str]:
    """Name the modules that hold some tensors, as ``modules_to_save`` takes them.

    PEFT saves every module in full whose name ends in ``classifier`` or ``score``, when the
    task is one of classification; nothing inside such a module may be named besides.

    Args:
        names: Names of the tensors, as `fimlora.model.targets.head_tensors` finds them.

    Returns:
        Full names of modules, sorted; none of them is inside another one.
    """
    found = set()
    for name in names:
        owners = name.split(".")[:-1]
        ends = [i for i, part in enumerate(owners, 1) if part.endswith(FULL_NAMES)]
        found.add(".".join(owners[: ends[0]] if ends else owners))
    return outermost(found)


def path_of_wrapper(name: str, names: Sequence[str]) -> str:
    """Say where PEFT puts the LoRA of a parameter in a model's tree.

    The wrapper of a module's last parameter is outermost, and the others are inside it.

    Args:
        name: The parameter's name.
        names: Names of all parameters that carry LoRA, in the model's order.

    Returns:
        The path of its wrapper.
    """
    module = name.rpartition(".")[0]
    beside = [other for other in names if other.rpartition(".")[0] == module]
    return module + ".base_layer" * (len(beside) - 1 - beside.index(name))


def dotted_ends(name: str) -> list[str]:
    """Take a name apart.

    Args:
        name: A module's name.

    Returns:
        The name and every ending of it that begins after a dot, longest first.
    """
    parts = name.split(".")
    return [".".join(parts[i:]) for i in range(len(parts))]
