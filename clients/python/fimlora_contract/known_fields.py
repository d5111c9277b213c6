"""Which fields an object of a request may have: what to say where one is not known."""

from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel


def fields_at(body: Any, location: Sequence[int | str]) -> list[str]:
    """Names of the fields that an object may have.

    Args:
        body: Type of the whole body.
        location: The validator's way to the object: fields, tags of unions and positions.
    """
    models = list(models_in(body))
    for step in location:
        inner = [
            found
            for model in models
            if step in model.model_fields
            for found in models_in(model.model_fields[str(step)].annotation)
        ]
        models = inner or [model for model in models if is_tagged(model, step)] or models
    return list(dict.fromkeys(name for model in models for name in model.model_fields))


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that a type allows, however it is put together."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models_in(part)


def is_tagged(model: type[BaseModel], tag: int | str) -> bool:
    """Whether a tag of a union means this model."""
    source = model.model_fields.get("source")
    return source is not None and tag in get_args(source.annotation)
