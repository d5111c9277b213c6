"""Settings as people are shown them: what holds, where it comes from, what it means."""

import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from fimlora_contract.environment import (
    FILE,
    environment_name,
    hide_password,
    is_address,
    is_link_address,
    is_secret,
)

HIDDEN = "********"
TYPES = {
    int: "whole number", float: "number", bool: "true or false", str: "text", Path: "path",
    SecretStr: "secret",
}  # fmt: skip
Origin = Literal["default", "environment", "file", "project file", "user file"]


@dataclass(frozen=True, slots=True)
class SettingShown:
    """One setting of one process.

    Attributes:
        name: The variable.
        value: What holds; of a secret only that there is one.
        origin: Where it comes from.
        type: What it may be, in words.
        default: What holds where it is not set.
        description: What it means.
    """

    name: str
    value: str
    origin: Origin
    type: str
    default: str
    description: str


def show_settings(settings: BaseModel, environ: Mapping[str, str]) -> list[SettingShown]:
    """Every setting as this environment gives it; no secret is in it."""
    kind = type(settings)
    given = {
        name.upper()
        for name, value in environ.items()
        if value and not is_link_address(name, value)
    }
    return [
        SettingShown(
            name=(name := environment_name(kind, field_name)),
            value=shown(field, getattr(settings, field_name)),
            origin=_origin(name, given),
            type=type_of(field),
            default=shown(field, field.default),
            description=field.description or "",
        )
        for field_name, field in kind.model_fields.items()
    ]


def shown(field: FieldInfo, value: object) -> str:
    """A value without its secret; empty for none."""
    if value is None or value == "":
        return ""
    if is_secret(field) and not is_address(field):
        return HIDDEN
    try:
        return hide_password(str(value)) if "://" in str(value) else str(value)
    except ValueError:
        return HIDDEN


def type_of(field: FieldInfo) -> str:
    """What a setting may be, in words."""
    if is_secret(field) and not is_address(field):
        return "secret"
    return "address" if is_address(field) else _words(field.annotation)


def _words(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(map(str, get_args(annotation)))
    if get_origin(annotation) in {Union, types.UnionType}:
        parts = [part for part in get_args(annotation) if part is not type(None)]
        return " or ".join(map(_words, parts))
    return TYPES.get(annotation, "text")


def _origin(name: str, given: set[str]) -> Origin:
    if name in given:
        return "environment"
    return "file" if name + FILE in given else "default"
