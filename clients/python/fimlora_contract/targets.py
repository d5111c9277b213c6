"""How modules are named in a request: by names and endings, or by one regular expression.

An expression is compiled here, so that a broken one is refused at once, and never run: one that
backtracks without end would hold whoever runs it. The engine runs it against the clock.
"""

import re
import warnings
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from fimlora_contract.base import json_kind

MAX_TARGETS, MAX_TARGET_CHARS = 10_000, 256
MAX_SAVED = 500  # with more, PEFT takes hours to find them in a large model
MAX_EXPRESSION_CHARS = 1024
SPECIAL = frozenset("\\*+?[](){}|^$")  # none can stand in a module's name

Name = Annotated[str, Field(min_length=1, max_length=MAX_TARGET_CHARS)]
Names = Annotated[list[Name], Field(min_length=1, max_length=MAX_TARGETS)]
Expression = Annotated[str, Field(min_length=1, max_length=MAX_EXPRESSION_CHARS)]
TargetModules = Names | Literal["all-linear"] | Expression | None
ExcludeModules = Names | Expression | None
TargetParameters = Names | Literal["all"] | None
ModulesToSave = Annotated[list[Name], Field(min_length=1, max_length=MAX_SAVED)] | None


def is_expression(text: str) -> bool:
    """Whether a text can only be a regular expression, and no name."""
    return not SPECIAL.isdisjoint(text)


def check_target_modules(value: Any) -> Any:
    """Refuse what names no target modules, in one sentence for all the forms there are.

    Raises:
        ValueError: Says what was given and what is allowed.
    """
    return value if value == "all-linear" else _check(value, 'the text "all-linear", ')


def check_exclude_modules(value: Any) -> Any:
    """Refuse what names no modules to leave out.

    Raises:
        ValueError: Says what was given and what is allowed.
    """
    return _check(value, "")


def check_target_parameters(value: Any) -> Any:
    """Refuse what names no parameters of fused experts.

    Raises:
        ValueError: Says what was given and what is allowed.
    """
    if value is None or value == "all":
        return value
    if not isinstance(value, list):
        kind = "other text" if isinstance(value, str) else json_kind(value)
        raise ValueError(
            'must be "all", a list of names of parameters or of their endings such as '
            f'["experts.down_proj"], or null; it is {kind}'
        )
    return _check(value, "")


def check_modules_to_save(value: Any) -> Any:
    """Refuse what names no modules to train whole.

    Raises:
        ValueError: Says what was given and what is allowed.
    """
    if value is None or isinstance(value, list):
        return _check(value, "", most=MAX_SAVED)
    kind = "text" if isinstance(value, str) else json_kind(value)
    raise ValueError(
        f'must be a list of names of modules such as ["lm_head"], or null; it is {kind}'
    )


AnyTargets = Annotated[
    TargetModules,
    BeforeValidator(check_target_modules, json_schema_input_type=TargetModules),
]
AnyParameters = Annotated[
    TargetParameters,
    BeforeValidator(check_target_parameters, json_schema_input_type=TargetParameters),
]
AnyExcluded = Annotated[
    ExcludeModules,
    BeforeValidator(check_exclude_modules, json_schema_input_type=ExcludeModules),
]

AnySaved = Annotated[
    ModulesToSave,
    BeforeValidator(check_modules_to_save, json_schema_input_type=ModulesToSave),
]


def _check(value: Any, more: str, *, most: int = MAX_TARGETS) -> Any:
    if value is None:
        return value
    if isinstance(value, str):
        return _check_expression(value, more)
    if not isinstance(value, list):
        raise ValueError(f"{_allowed(more)}; it is {json_kind(value)}")
    if not 1 <= len(value) <= most:
        raise ValueError(f"must have 1 to {most} names; it has {len(value)}")
    for number, name in enumerate(value, 1):
        if not isinstance(name, str):
            raise ValueError(f"name {number} must be text; it is {json_kind(name)}")
        if not 1 <= len(name) <= MAX_TARGET_CHARS:
            raise ValueError(
                f"name {number} must have 1 to {MAX_TARGET_CHARS} characters; it has "
                f"{len(name)}"
            )
    return value


def _check_expression(text: str, more: str) -> str:
    if not 1 <= len(text) <= MAX_EXPRESSION_CHARS:
        raise ValueError(
            f"an expression must have 1 to {MAX_EXPRESSION_CHARS} characters; it has {len(text)}"
        )
    if not is_expression(text):
        raise ValueError(f"{_allowed(more)}; it is other text, and a name belongs in a list")
    try:
        with warnings.catch_warnings(action="ignore"):
            re.compile(text)
    except re.error as error:
        where = "" if error.pos is None else f" at character {error.pos + 1}"
        raise ValueError(f"is no regular expression: it goes wrong{where}") from None
    except (OverflowError, RecursionError):
        raise ValueError("is no regular expression: it repeats or nests too much") from None
    return text


def _allowed(more: str) -> str:
    return (
        f'must be a list of names such as ["query", "value"], {more}a regular expression over '
        'full names such as ".*(query|value)", or null'
    )
