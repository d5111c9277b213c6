"""What GET /cache answers."""

from typing import Literal

from pydantic import Field

from fimlora_contract.base import AnswerModel


class KindFigures(AnswerModel):
    """How many there are of a kind, and what they take."""

    entries: int
    bytes: int


class CacheLimits(AnswerModel):
    """What is kept at most; null for no limit."""

    max_bytes: int | None = None
    max_age_days: float | None = None


class CacheFigures(AnswerModel):
    """What is kept, and how often it helped since the store was new."""

    object: Literal["cache"] = "cache"
    results: KindFigures
    statistics: KindFigures = Field(description="The part of the results that re-plans read.")
    uploads: KindFigures = Field(description="Datasets; they are never evicted.")
    pinned: int = Field(description="Results that a pin stands for; they are never evicted.")
    hits: int = Field(description="Requests answered by an earlier result or an open job.")
    replanned: int = Field(description="Requests planned from an earlier job's statistics.")
    misses: int = Field(description="Requests that had to be measured.")
    evicted: KindFigures
    limits: CacheLimits


class EvictionReport(AnswerModel):
    """What was deleted."""

    object: Literal["eviction"] = "eviction"
    entries: int
    bytes: int
