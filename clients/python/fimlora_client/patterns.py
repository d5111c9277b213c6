"""A rank pattern as it was fetched: text in some tool's words, with the tag of its content."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fimlora_client.calls import Answer, raise_for_problem, read_answer, route
from fimlora_client.errors import ApiError, DigestMismatch, ValidationFailed, problem_of
from fimlora_client.files import write_text
from fimlora_contract.digests import digest_bytes, digest_file
from fimlora_contract.rank_patterns import RankPattern
from fimlora_contract.references import NAME

Format = Literal[
    "json", "yaml", "peft", "layout-c", "adalora", "axolotl", "llama-factory", "ms-swift", "trl",
    "unsloth", "vllm",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class FetchedPattern:
    """A rank pattern in a format, or the news that the caller's copy is still right.

    Attributes:
        digest: Content address of the result.
        format: Whose words it is written in.
        etag: Give it to the next fetch, which then only says whether anything changed.
        text: The pattern; ``None`` when it is what the caller has already.
    """

    digest: str
    format: Format
    etag: str
    text: str | None = field(repr=False)

    @property
    def unchanged(self) -> bool:
        """Whether the caller's copy is still right."""
        return self.text is None

    @property
    def pattern(self) -> RankPattern:
        """The pattern as data.

        Raises:
            ApiError: It was fetched in another format than ``json``, or is unchanged.
        """
        if self.text is None or self.format != "json":
            detail = f"there is no JSON here: format={self.format}, unchanged={self.unchanged}"
            raise ApiError(problem_of("no_pattern", detail))
        return RankPattern.model_validate_json(self.text)


def pin_route(name: str, tag: str, *rest: str) -> str:
    """The path of a pin; a name with a slash would lead to another route.

    Raises:
        ValidationFailed: Name or tag cannot be one.
    """
    for field_, value in {"name": name, "tag": tag}.items():
        if not re.match(NAME, value):
            message = (
                f"{value!r} cannot be one: use letters, digits, '.', '_' and '-', at most 96"
            )
            errors = [{"field": field_, "message": message}]
            problem = problem_of("validation_failed", "no such pin can be", errors=errors)
            raise ValidationFailed(problem)
    return route("rank-patterns", name, tag, *rest)


def read_pattern(answer: Answer, format: Format) -> FetchedPattern:
    """The pattern that came back, checked against its digest.

    Raises:
        DigestMismatch: The text is not what its tag says.
    """
    etag = answer.headers.get("etag", "")
    # Not the tag: in other formats than JSON that is the tag of the text.
    digest = answer.headers.get("content-location", "").rpartition("/")[2]
    if answer.is_unchanged:
        return FetchedPattern(digest, format, etag, None)
    raise_for_problem(answer)
    expected = etag.removeprefix("W/").strip('"')
    if format == "json":
        found = read_answer(answer, RankPattern).digest
    else:
        found = digest_bytes(answer.content)
    if expected.startswith("sha256:") and found != expected:
        raise DigestMismatch(f"the pattern has digest {found}, the service says {expected}")
    return FetchedPattern(digest, format, etag, answer.content.decode())


@dataclass(frozen=True, slots=True)
class KeptFile:
    """A fetched pattern in a file, with its tag in another beside it.

    Attributes:
        path: The file; its tag is in ``<path>.etag``.
    """

    path: Path

    @property
    def etag(self) -> str | None:
        """The tag of what is in the file; ``None`` unless the file is as it was fetched."""
        try:
            kept = json.loads(self._beside.read_text(encoding="utf-8"))
            same = kept["digest"] == digest_file(self.path)
            return str(kept["etag"]) if same else None
        except (OSError, ValueError, KeyError, TypeError):
            return None  # whatever is there, fetching anew puts it right

    def write(self, text: str, *, etag: str) -> None:
        """Replace the file and its tag."""
        write_text(self.path, text)
        kept = {"etag": etag, "digest": digest_bytes(text.encode())}
        write_text(self._beside, json.dumps(kept) + "\n")

    @property
    def _beside(self) -> Path:
        return self.path.with_name(f"{self.path.name}.etag")
