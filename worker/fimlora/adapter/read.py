"""Reading an adapter's files back without being misled. Nothing here imports torch or PEFT."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fimlora.adapter.config import WRAPPER_PREFIX
from fimlora.errors import InvalidAdapter
from fimlora.plan import RankPlan


def load_plan(path: str | Path) -> RankPlan:
    """Read a plan from ``rank_map.json`` or from the adapter folder that holds it.

    Returns:
        The plan, equal to the one that was written.

    Raises:
        InvalidAdapter: There is no rank map at that path, or it cannot be read. An adapter
            config beside it that PEFT would misread is refused as well.
    """
    path = Path(path)
    if (path / "adapter_config.json").exists():
        read_adapter_config(path)
    file = path / "rank_map.json" if path.is_dir() else path
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidAdapter(f"cannot read a rank map from {file}: {error}") from error
    if not isinstance(data, dict):
        raise InvalidAdapter(f"{file} holds {type(data).__name__}, expected a rank map object")
    return RankPlan.from_json(data)


def read_adapter_config(path: str | Path) -> dict[str, Any]:
    """Read a config that PEFT would apply as it stands.

    Args:
        path: ``adapter_config.json``, or the folder that holds it.

    Returns:
        Its content.

    Raises:
        InvalidAdapter: It cannot be read, or its pattern keys carry the prefix that PEFT's
            wrapper adds, so that PEFT would ignore them.
    """
    path = Path(path)
    file = path / "adapter_config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidAdapter(f"cannot read an adapter config from {file}: {error}") from error
    if not isinstance(config, dict):
        raise InvalidAdapter(f"{file} holds {type(config).__name__}, expected an object")
    check_pattern_keys(config, file)
    return config


def check_pattern_keys(config: Mapping[str, Any], file: str | Path) -> None:
    """Refuse keys of patterns that no module of a base model can match.

    Args:
        config: The content of an adapter's config.
        file: Where it stands, for errors.

    Raises:
        InvalidAdapter: A key starts with the prefix that PEFT's wrapper adds.
    """
    for field in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(field)
        for key in pattern if isinstance(pattern, dict | list) else ():
            if str(key).lstrip("^").startswith(WRAPPER_PREFIX):
                raise InvalidAdapter(
                    f"{file}: {field} key {key!r} starts with {WRAPPER_PREFIX!r}, so PEFT "
                    "ignores it and every module gets the default rank; remove that prefix from "
                    "the keys of rank_pattern and alpha_pattern"
                )
