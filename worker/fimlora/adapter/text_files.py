"""The files of an adapter that are text: config, rank map as data and as a picture.

The same plan gives the same bytes. Nothing here imports torch, so a service can tell the
digest of an adapter that was never written.
"""

import json
from collections.abc import Mapping
from typing import Any

from fimlora.adapter.config import padded_rank
from fimlora.adapter.rank_map_picture import render_svg
from fimlora.plan import RankPlan


def text_files(
    plan: RankPlan, config: Mapping[str, Any], *, layout: str = "B"
) -> dict[str, bytes]:
    """Write a plan and its adapter config down.

    Args:
        plan: The plan.
        config: What `fimlora.adapter.config.build_adapter_config` makes of it.
        layout: ``B`` or ``C``, as the config was made.

    Returns:
        Content by file name.
    """
    return {
        "adapter_config.json": _json_bytes(config, sort_keys=True),
        "rank_map.json": _json_bytes(rank_map(plan, layout=layout), sort_keys=False),
        "rank_map.svg": render_svg(plan).encode(),
    }


def rank_map(plan: RankPlan, *, layout: str = "B") -> dict[str, Any]:
    """The plan as plain data, and what an adapter of it holds.

    Args:
        plan: The plan.
        layout: ``B`` or ``C``; layout C pads every module to one rank, so more parameters
            train than the plan spends.

    Returns:
        What ``rank_map.json`` holds; its ``adapter`` has the layout, the common rank of
        layout C, and the parameters of all LoRA matrices as written, which PEFT counts as
        trainable; those of experts that are not selected are zero and stay so.
    """
    data = plan.to_json()
    width = padded_rank(plan) if layout == "C" else None
    ranks = {name: (width or rank) if rank else 0 for name, rank in plan.ranks.items()}
    n_held = sum(m.held_cost * ranks[m.name] for m in plan.modules)
    adapter = {"layout": layout, "width": width, "trainable_parameters": n_held}
    return data | {"adapter": adapter, "modules": data.pop("modules")}


def _json_bytes(data: Any, *, sort_keys: bool) -> bytes:
    return (json.dumps(data, indent=2, sort_keys=sort_keys) + "\n").encode()
