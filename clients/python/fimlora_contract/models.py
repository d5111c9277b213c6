"""Registered base models."""

import re
from pathlib import Path
from typing import Literal

from pydantic import Field

from fimlora_contract.base import AnswerModel

LONGEST_NAME = 1024


class Model(AnswerModel):
    """A registered local base model."""

    id: str
    object: Literal["model"] = "model"
    source: Literal["local"] = "local"
    base_model: str | None = Field(
        None,
        description="What adapters call it: a hub id, or a path that the operator gave. Null: "
        "they leave `base_model_name_or_path` null.",
    )
    architecture: str | None = None
    model_type: str | None = None
    size: int
    usable: bool
    problem: str | None = Field(None, description="Why it is not usable.")


class ModelPage(AnswerModel):
    """All registered local base models."""

    object: Literal["list"] = "list"
    data: list[Model]
    data_dir: str | None = Field(
        None,
        description="Where `models`, `datasets` and `adapters` hold what is registered; told to "
        "the operator on the service's own machine only.",
    )


def name_file(models: Path, name: str) -> Path:
    """The file beside a registered model that holds what adapters call it."""
    return models / f".{name}.base_model"


def hub_id_of(folder: Path) -> str | None:
    """The hub id of a snapshot in a cache of the hub's client; ``None`` elsewhere."""
    parts = folder.parts[-3:]
    if len(parts) < 3 or parts[1] != "snapshots":
        return None
    found = re.fullmatch(r"models--([A-Za-z0-9._-]+?)--([A-Za-z0-9._-]+)", parts[0])
    return f"{found[1]}/{found[2]}" if found else None


def is_base_model_name(text: str) -> bool:
    """Whether adapters may call a base model so: one line that can be printed."""
    return 0 < len(text) <= LONGEST_NAME and text.isprintable() and text == text.strip()
