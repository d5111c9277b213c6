"""Registered base models."""

from typing import Literal

from pydantic import Field

from fimlora_contract.base import AnswerModel


class Model(AnswerModel):
    """A registered local base model."""

    id: str
    object: Literal["model"] = "model"
    source: Literal["local"] = "local"
    architecture: str | None = None
    model_type: str | None = None
    size: int
    usable: bool
    problem: str | None = Field(None, description="Why it is not usable.")


class ModelPage(AnswerModel):
    """All registered local base models."""

    object: Literal["list"] = "list"
    data: list[Model]
