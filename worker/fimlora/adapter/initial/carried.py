"""What the rank map beside an adapter says of its initial weights, for what is made of the adapter.

Without it nothing is known, and nothing is claimed. Nothing here imports torch.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from fimlora.adapter.initial.registry import INITIAL, INITS, find_initial
from fimlora.errors import InvalidAdapter
from fimlora.plan import PlanWarning, RankPlan

# In a plan's provenance: the matrices are those of an adapter that was cut.
TRUNCATED = "truncated"
_RANK_MAP = "rank_map.json"
_MAX_BYTES = 64 << 20


def carry_initial(plan: RankPlan, folder: Path) -> RankPlan:
    """Say of an adapter that is made of another one how that began, where that one's map does.

    Args:
        plan: The plan of the one that is made.
        folder: The other one's.

    Returns:
        The plan with the other one's initial weights in its provenance and, where they call for
        one, as its first warning. What was cut stays known as such.

    Raises:
        InvalidAdapter: There is a rank map that cannot be read.
    """  # noqa: DOC502 - the helpers raise
    stated = _provenance(folder)
    facts = {key: stated[key] for key in (INITIAL, TRUNCATED) if key in stated}
    plan = replace(plan, provenance={**facts, **plan.provenance})
    if INITIAL not in facts:
        return plan
    initial = find_initial(_known_name(facts[INITIAL]))
    is_filled = initial.code == "does_not_train" and any(plan.scores.values())
    if initial.code is None or is_filled:
        return plan
    message = f"initial weights {initial.name} {initial.start}"
    if TRUNCATED in plan.provenance:
        message += (
            "; this adapter was cut, and the folder meant is the one that was written first"
        )
    return replace(plan, warnings=(PlanWarning(initial.code, message), *plan.warnings))


def _provenance(folder: Path) -> dict[str, Any]:
    """Read the provenance in the rank map of a folder.

    Returns:
        The provenance; empty where there is no map.

    Raises:
        InvalidAdapter: The map cannot be read.
    """
    file = folder / _RANK_MAP
    if not file.is_file():
        return {}
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise InvalidAdapter(f"{_RANK_MAP} is over the limit of {_MAX_BYTES} bytes")
        data = json.loads(file.read_text(encoding="utf-8"))
        found = data["provenance"]
    except OSError as error:
        raise InvalidAdapter(f"{_RANK_MAP} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError, KeyError, TypeError):
        found = None
    if not isinstance(found, dict):
        raise InvalidAdapter(
            f"{_RANK_MAP} beside the adapter is no rank map, so that its initial weights cannot be "
            "told; put the one back that was written with it, or take it away"
        )
    return found


def _known_name(facts: Any) -> str:
    """Take the name of the initial weights that a map states.

    Returns:
        The name.

    Raises:
        InvalidAdapter: It is none that is known.
    """
    name = facts.get("name") if isinstance(facts, dict) else None
    if name not in INITS:
        raise InvalidAdapter(
            f"{_RANK_MAP} states initial weights {name!r:.40}; known are {', '.join(INITS)}"
        )
    return str(name)
