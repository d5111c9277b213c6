"""Planned modules that one module of the adapter's base model does the work of.

Trainers and model classes merge ``q_proj``, ``k_proj`` and ``v_proj`` into one map, or the
projections of all experts into one parameter. Nothing here imports torch.
"""

from collections import defaultdict
from collections.abc import Iterable

from fimlora.adapter.verifying.names import without_wrappers
from fimlora.adapter.verifying.seen import SeenAdapter
from fimlora.plan import RankPlan, TargetModule

# What maps of one input are called when they are one.
_WHOLES = {
    **dict.fromkeys(
        ("qkv_proj", "qkv", "Wqkv", "query_key_value", "c_attn", "in_proj", "W_pack"), "qkv"
    ),
    **dict.fromkeys(("gate_up_proj", "gate_up", "w13"), "gate_up"),
}
_PARTS = {
    "qkv": ("q_proj", "k_proj", "v_proj", "query", "key", "value", "q", "k", "v"),
    "gate_up": ("gate_proj", "up_proj", "w1", "w3"),
}
_EXPERTS = "experts"


def fused_into(
    plan: RankPlan, missing: Iterable[str], extra: Iterable[str], seen: SeenAdapter
) -> dict[str, list[str]]:
    """Find what modules of an adapter are several planned ones in one.

    Args:
        plan: The plan.
        missing: Planned names that the adapter does not have.
        extra: Names that the adapter has and the plan does not.
        seen: The adapter.

    Returns:
        Planned names by the name in the adapter.
    """
    targets = {m.name: m for m in plan.modules}
    siblings = defaultdict(list)
    for name in missing:
        siblings[_block_and_parent(name)].append(targets[name])
    found: dict[str, list[str]] = {}
    for whole in (*extra, *seen.parameters):
        parts = _parts_of(whole, siblings[_block_and_parent(whole)], seen)
        if not parts and _EXPERTS in whole.split("."):
            parts = [targets[n] for n in missing if _layer_of(n) == _layer_of(whole)]
            parts = [m for m in parts if ".mlp." in m.name or _EXPERTS in m.name] or parts
        if parts:
            found[whole] = [m.name for m in parts]
    return found


def _parts_of(
    whole: str, siblings: list[TargetModule], seen: SeenAdapter
) -> list[TargetModule]:
    """The siblings that a module is in one, by what it is called or by its size."""
    kind = _WHOLES.get(whole.rpartition(".")[2])
    named = [m for m in siblings if kind and m.name.rpartition(".")[2] in _PARTS[kind]]
    if named:
        return named
    module = seen.modules.get(whole)
    if module is None or len(siblings) < 2:
        return []
    alike = [m for m in siblings if m.d_in == module.d_in]
    is_sum = len(alike) > 1 and sum(m.d_out for m in alike) == module.d_out
    return alike if is_sum else []


def _block_and_parent(name: str) -> str:
    return without_wrappers(name).rpartition(".")[0]


def _layer_of(name: str) -> int | None:
    return TargetModule(name, 1, 1).layer
