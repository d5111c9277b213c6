"""Where a request is wrong and why, in a client's words instead of the validator's.

No message repeats what was sent, except the names of fields.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fimlora_contract import keys, references
from fimlora_contract.known_fields import fields_at
from fimlora_contract.near_names import did_you_mean
from fimlora_contract.references import DATASET_SOURCES, MODEL_SOURCES

MAX_PATH_CHARS = 200
PATTERN_MEANINGS = references.PATTERN_MEANINGS | keys.PATTERN_MEANINGS
MESSAGES = {
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "dict_type": "must be an object",
    "list_type": "must be a list",
    "string_type": "must be text",
    "missing": "this field is required",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number of fewer digits",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "too_short": "must have at least {min_length} entries; it has {actual_length}",
    "too_long": "must have at most {max_length} entries",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "recursion_loop": "is nested too deeply",
    "string_unicode": "holds half a character (a lone surrogate)",
}
# Forms of what is not in a body, by the name of the parameter.
FORMS = {
    "plans": "must be sha256: and 64 hexadecimal digits, the id of a job (job_...), or name/tag of "
    "a pin",
    "webhook": "must be an http or https address of plain ASCII, without user or fragment",
    "Idempotency-Key": "must be 1 to 255 printable ASCII characters",
    "digest": "must be sha256: and 64 lower-case hexadecimal digits",
    "label": "must be KEY=VALUE",
    "cursor": "must be the next_cursor of a page",
    "after": "must be the id of an event",
    "last-event-id": "must be the id of an event",
}
# Fields that have another name now, by where they were looked for.
RENAMED = {
    (
        "allocation",
        "rule",
    ): "allocation.rule is now allocation.method; its value proportional is "
    "now fim, all others have kept their names",
}
KEY = "[key]"  # stands behind a key in the validator's location, where that is wrong itself
VALIDATOR_WORDS = re.compile(r"^(Input|String|List|Dictionary) should ")
SOURCES = {
    "base_model": MODEL_SOURCES, "dataset": DATASET_SOURCES, "retain": DATASET_SOURCES
}  # fmt: skip


def field_error(error: Mapping[str, Any], *, body: Any = None) -> dict[str, str]:
    """One error of the validator as it goes on a problem document.

    Args:
        error: As the validator tells it.
        body: Type of the body, where the route takes one.
    """
    field, type_ = field_path(error["loc"]), error["type"]
    return {"field": field, "message": message_of(error, body=body), "type": type_}


def message_of(error: Mapping[str, Any], *, body: Any = None) -> str:
    """What is wrong, in a sentence that says what is allowed."""
    if error["loc"][-1] == KEY:
        return f"each name in it {message_of({**error, 'loc': error['loc'][:-2]}, body=body)}"
    location = error["loc"][1:-1]
    if error["type"] == "extra_forbidden" and error["loc"][0] == "body":
        renamed = RENAMED.get(tuple(error["loc"][1:]))
        known = fields_at(body, location)
        near = did_you_mean(str(error["loc"][-1]), known)
        return renamed or f"there is no such field; there are {known}{near}"
    if error["type"] == "string_pattern_mismatch":
        return PATTERN_MEANINGS.get(error["ctx"]["pattern"]) or _form(error["loc"])
    if words := MESSAGES.get(error["type"]):
        return _filled(words, error.get("ctx", {}))
    message = str(error["msg"]).removeprefix("Value error, ")
    return VALIDATOR_WORDS.sub("must ", message) + _near_value(error)


def _filled(words: str, limits: Mapping[str, Any]) -> str:
    """A sentence with the limits it names, 1.0 as 1."""
    if limits.get("min_length") == 1:
        return "must not be empty"
    return words.format_map(
        {
            name: f"{value:.12g}" if isinstance(value, float) else value
            for name, value in limits.items()
        }
    )


def _form(location: Sequence[int | str]) -> str:
    """What a parameter looks like, or each value of an object of them."""
    known = (FORMS[str(name)] for name in reversed(location) if str(name) in FORMS)
    return next(known, "has not the form that this field takes")


def _near_value(error: Mapping[str, Any]) -> str:
    """Which of a few allowed words was meant; names of ours only, nothing that was sent."""
    given = error.get("input")
    if error["type"] not in {"literal_error", "enum"} or not isinstance(given, str):
        return ""
    return did_you_mean(given, re.findall(r"'([^']+)'", error["ctx"]["expected"]))


def field_path(location: Sequence[int | str]) -> str:
    """``body.dataset.rows[3].text`` for the validator's location tuple."""
    path = ""
    for part in without_tags(location):
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return clip(path.lstrip("."))


def without_tags(location: Sequence[int | str]) -> list[int | str]:
    """A location as the client wrote it: the validator adds which form of a union it tried."""
    parts = list(location[:-2] if location[-1:] == (KEY,) else location)
    if len(parts) > 2 and parts[2] in SOURCES.get(str(parts[1]), ()):
        del parts[2]
    if parts[1:3] in (["dataset", "rows"], ["retain", "rows"]):
        del parts[5:]  # inside a value of a row, every other part is a tag
    return parts


def clip(text: str) -> str:
    """A text short enough for an answer."""
    return text if len(text) <= MAX_PATH_CHARS else f"{text[:MAX_PATH_CHARS]}..."
