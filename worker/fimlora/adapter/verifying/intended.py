"""What an adapter was planned to be: the plan, and what its config says besides.

Nothing here imports torch.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fimlora.adapter.config import LEFT_OUT
from fimlora.adapter.read import read_adapter_config
from fimlora.errors import InvalidAdapter
from fimlora.plan import RankPlan

AnyPlan = str | Path | RankPlan | Mapping[str, Any]
_CONFIG, _RANK_MAP = "adapter_config.json", "rank_map.json"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SNAPSHOT = re.compile(r".*/models--([^/]+)--([^/]+)/snapshots/([0-9a-f]{7,64})/?$")


@dataclass(frozen=True, slots=True)
class BaseName:
    """What a base model is called.

    Attributes:
        name: As it is written; ``None`` where nothing is.
        hub_id: Its id on the hub, if that is what the name tells.
        revision: Its commit, if that is known.
        digest: Of its files, if these lie here and somebody has read them.
    """

    name: str | None
    hub_id: str | None = None
    revision: str | None = None
    digest: str | None = None


def base_name(name: str | None, revision: str | None = None) -> BaseName:
    """Read a name of a base model: an id, a path into the hub's cache, or another path.

    Args:
        name: The name.
        revision: Its revision, if that stands beside it.

    Returns:
        What the name tells.
    """
    if name and (cached := _SNAPSHOT.match(name.replace("\\", "/"))):
        return BaseName(name, f"{cached[1]}/{cached[2]}", cached[3])
    is_id = bool(name and _HUB_ID.fullmatch(name) and not Path(name).is_dir())
    return BaseName(name or None, name if is_id else None, revision or None)


@dataclass(frozen=True, slots=True)
class Intended:
    """What an adapter was planned to be.

    Attributes:
        plan: The plan.
        base: The base model.
        model_type: The architecture's name in transformers, if that is known.
        saved: Modules that are to be trained in full; ``None`` where that is not known.
        has_head: Whether the head of a classification is among them; a plan does not say.
        width: The one rank that layout C pads to, if the plan was written in it.
    """

    plan: RankPlan
    base: BaseName
    model_type: str | None = None
    saved: tuple[str, ...] | None = None
    width: int | None = None
    has_head: bool = True


def read_intended(plan: AnyPlan) -> Intended:
    """Read what was planned, from whatever form it is kept in.

    Args:
        plan: A plan; the folder of one, with ``rank_map.json`` and perhaps
            ``adapter_config.json``; a ``rank_map.json``; a rank pattern as the service gives it
            in JSON, as a file or as data.

    Returns:
        What was planned.

    Raises:
        InvalidAdapter: It is none of these.
    """
    if isinstance(plan, RankPlan):
        return _intended(plan.to_json(), None)
    if isinstance(plan, Mapping):
        return _of_data(plan, "the plan")
    path = Path(plan).expanduser()
    if not path.is_dir():
        config = path.parent / _CONFIG
        beside = config if path.name == _RANK_MAP and config.is_file() else None
        return _of_data(_read(path), str(path), beside)
    if not (path / _RANK_MAP).is_file():
        raise InvalidAdapter(
            f"{path} holds no {_RANK_MAP}: give the folder that `fimlora fetch JOB --output FOLDER` "
            "has filled, or its rank_map.json"
        )
    beside = path / _CONFIG
    return _of_data(_read(path / _RANK_MAP), str(path), beside if beside.is_file() else None)


def _read(file: Path) -> Mapping[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidAdapter(f"cannot read a plan from {file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidAdapter(f"{file} is no plan in JSON: {error}") from error
    if not isinstance(data, dict):
        raise InvalidAdapter(f"{file} holds {type(data).__name__}, expected a plan's object")
    return data


def _of_data(data: Mapping[str, Any], name: str, config: Path | None = None) -> Intended:
    if "peft_type" in data:
        raise InvalidAdapter(
            f"{name} is an adapter config, which does not name the modules of the default rank: "
            "give the rank_map.json that lies beside it, or a rank pattern in JSON (fimlora fetch "
            "ID --format json)"
        )
    if isinstance(data.get("rank_map"), dict):
        fields = data.get("adapter_config")
        return _intended(data["rank_map"], fields if isinstance(fields, dict) else None)
    return _intended(data, None if config is None else read_adapter_config(config))


def _intended(rank_map: Mapping[str, Any], config: Mapping[str, Any] | None) -> Intended:
    plan = RankPlan.from_json(rank_map)
    source = plan.provenance.get("base_model")
    source = source if isinstance(source, dict) else {}
    given = config or {}
    name = source.get("id") or given.get("base_model_name_or_path") or source.get("name")
    base = base_name(name, source.get("revision") or given.get("revision"))
    base = replace(base, digest=source.get("digest"))
    written = rank_map.get("adapter")
    return Intended(
        plan=plan,
        base=base,
        model_type=source.get("model_type"),
        saved=_saved(plan) if config is None else tuple(config.get("modules_to_save") or ()),
        has_head=config is not None,
        width=written.get("width") if isinstance(written, dict) else None,
    )


def _saved(plan: RankPlan) -> tuple[str, ...] | None:
    """What a plan alone says is trained in full, by names that hold wherever its keys do."""
    left_out = plan.provenance.get(LEFT_OUT, "")
    return tuple(name.removeprefix(left_out) for name in plan.saved) or None
