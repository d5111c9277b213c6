"""The files of a result."""

from typing import Literal

from pydantic import Field

from fimlora_contract.base import AnswerModel


class Artifact(AnswerModel):
    """One file of the result; its digest is also its ``ETag``."""

    name: str
    digest: str
    size: int
    media_type: str
    href: str = ""


class JobResult(AnswerModel):
    """What the results of jobs of every kind have."""

    digest: str = Field(description="Content address of the artefact folder.")
    artifacts: list[Artifact]


class ArtifactPage(AnswerModel):
    """All files of a result."""

    object: Literal["list"] = "list"
    data: list[Artifact]
