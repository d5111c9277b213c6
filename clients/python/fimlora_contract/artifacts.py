"""The files of a result."""

from typing import Literal

from fimlora_contract.base import AnswerModel


class Artifact(AnswerModel):
    """One file of the result; its digest is also its ``ETag``."""

    name: str
    digest: str
    size: int
    media_type: str
    href: str = ""


class ArtifactPage(AnswerModel):
    """All files of a result."""

    object: Literal["list"] = "list"
    data: list[Artifact]
