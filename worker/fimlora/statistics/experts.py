"""What a rank map says of each expert of fused ones: its tokens, and its part of the Fisher information.

One rank is planned for all experts of a projection, as nothing else can be trained or served; how
unlike they are shows here. Nothing here imports torch.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fimlora.plan import TargetModule

_DIGITS = 6
# What holds a row per expert, by what it is the Fisher information of; the first there is.
_ROWS = ("row_energies", "squared_gradients")


def expert_facts(
    modules: tuple[TargetModule, ...], groups: Mapping[str, Mapping[str, NDArray[Any]]]
) -> dict[str, dict[str, list[Any]]]:
    """Say what was seen of each expert.

    Args:
        modules: The target modules.
        groups: What was recorded, by group and module.

    Returns:
        By name of a fused parameter: ``tokens`` that were routed to each expert, padding left out;
        and ``fisher``, each one's share of the parameter's Fisher information, if that was
        measured. Empty where no module is of fused experts, or nothing was seen of any.
    """
    found: dict[str, dict[str, list[Any]]] = {}
    for module in modules:
        if module.n_experts is None:
            continue
        facts: dict[str, list[Any]] = {}
        if (tokens := groups.get("expert_tokens", {}).get(module.name)) is not None:
            facts["tokens"] = [int(n) for n in tokens]
        rows = (groups.get(group, {}).get(module.name) for group in _ROWS)
        if (energies := next((r for r in rows if r is not None), None)) is not None:
            facts["fisher"] = _shares(energies)
        if facts:  # a run that goes forward only, or not at all, sees nothing of them
            found[module.name] = facts
    return found


def _shares(rows: NDArray[Any]) -> list[float]:
    by_expert = rows.reshape(len(rows), -1).sum(axis=1)
    total = by_expert.sum()
    return [round(float(e), _DIGITS) for e in by_expert / (total or np.float64(1))]
