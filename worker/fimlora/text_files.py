"""The files of an adapter that are text: config, rank map as data and as a picture.

The same plan gives the same bytes. Nothing here imports torch, so a service can tell the
digest of an adapter that was never written.
"""

import json
from collections.abc import Mapping
from typing import Any

from fimlora.plan import RankPlan
from fimlora.rank_map import render_svg


def text_files(plan: RankPlan, config: Mapping[str, Any]) -> dict[str, bytes]:
    """Write a plan and its adapter config down.

    Args:
        plan: The plan.
        config: What `fimlora.adapter_config.build_adapter_config` makes of it.

    Returns:
        Content by file name.
    """
    return {
        "adapter_config.json": _json_bytes(config, sort_keys=True),
        "rank_map.json": _json_bytes(plan.to_json(), sort_keys=False),
        "rank_map.svg": render_svg(plan).encode(),
    }


def _json_bytes(data: Any, *, sort_keys: bool) -> bytes:
    return (json.dumps(data, indent=2, sort_keys=sort_keys) + "\n").encode()
