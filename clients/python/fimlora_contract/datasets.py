"""Uploaded and registered datasets."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from fimlora_contract.base import AnswerModel


class Dataset(AnswerModel):
    """An uploaded or registered dataset; the id of an upload is its content and its owner."""

    id: str
    object: Literal["dataset"] = "dataset"
    source: Literal["upload", "local"]
    format: Literal["csv", "jsonl", "parquet", "folder"]
    rows: int | None = Field(None, description="Null for a registered folder not yet read.")
    columns: list[str] = []
    size: int
    digest: str | None = Field(None, description="Null for a registered dataset not yet read.")
    created_at: datetime | None = None
    owner: str = Field(
        default="",
        description="The tenant that it belongs to; empty for the operator, or without keys.",
    )


class DatasetPage(AnswerModel):
    """All datasets the service knows."""

    object: Literal["list"] = "list"
    data: list[Dataset]
