"""A rank pattern in the words of whoever reads it, and the answer that carries it."""

from typing import Literal, NamedTuple

from fastapi import Request, Response

from fimlora.adapter.exports import FORMATS, as_yaml, export
from fimlora.errors import FimloraError
from fimlora.plan import RankPlan
from fimlora_contract.digests import digest_bytes
from fimlora_contract.rank_patterns import RankPattern
from fimlora_service.errors import ValidationFailed
from fimlora_service.http.headers import has_copy

FOR_EVER, REVALIDATE = "private, max-age=31536000, immutable", "no-cache"
Format = Literal[
    "json", "yaml", "peft", "layout-c", "adalora", "axolotl", "llama-factory", "ms-swift", "trl",
    "unsloth", "vllm",
]  # fmt: skip


class Asked(NamedTuple):
    """What a pattern is wanted in.

    Attributes:
        format: Whose words.
        steps: Optimizer steps of the training, which AdaLoRA's schedule follows from.
        accumulation: Micro-batches per step.
    """

    format: Format = "json"
    steps: int | None = None
    accumulation: int | None = None


class Rendered(NamedTuple):
    """A pattern as text.

    Attributes:
        text: The text.
        media_type: What it is.
        tag: Stands for it in an ETag.
    """

    text: str
    media_type: str
    tag: str


def render(pattern: RankPattern, asked: Asked) -> Rendered:
    """A pattern as asked; the tag of JSON is the content address itself."""
    if asked.format in ("json", "yaml") and (asked.steps, asked.accumulation) != (None, None):
        raise ValidationFailed("steps and accumulation are for format=adalora only")
    if asked.format == "json":
        return Rendered(pattern.model_dump_json(), "application/json", pattern.digest)
    if asked.format == "yaml":
        text, media_type = as_yaml(pattern.model_dump(mode="json")), FORMATS["axolotl"][1]
    else:
        try:
            plan = RankPlan.from_json(pattern.rank_map.model_dump())
            written = export(
                plan,
                pattern.adapter_config,
                asked.format,
                steps=asked.steps,
                accumulation_steps=asked.accumulation,
            )
        except FimloraError as error:
            raise ValidationFailed(f"format={asked.format}: {error}") from error
        text, media_type = written.text, written.media_type
    return Rendered(text, media_type, digest_bytes(text.encode()))


def answer(request: Request, pattern: RankPattern, asked: Asked, *, cache: str) -> Response:
    """A pattern as asked, or 304; and where it can be fetched for ever."""
    rendered = render(pattern, asked)
    headers = {
        "ETag": f'"{rendered.tag}"',
        "Cache-Control": cache,
        "Content-Location": f"/rank-patterns/{pattern.digest}",
    }
    if has_copy(request, rendered.tag):
        return Response(status_code=304, headers=headers)
    return Response(rendered.text, media_type=rendered.media_type, headers=headers)
