"""A row's messages as chat templates want them, whichever of the usual shapes they come in.

Known are OpenAI's messages (``role``, ``content``), ShareGPT's (``from``, ``value``) and prompt
and completion as lists of either. What Arrow fills into structs, a null for each key that
another row has, is dropped: the same rows read the same from JSONL and from Parquet.

Content may have parts that are images or sounds. A part that brings none along stands for the next
one of the row's own column; without such parts, all of these go before the first words of the user.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fimlora_jobs.datasets.media import MOST_OF_A_ROW, Kind, Value

Message = dict[str, Any]
SYSTEM, ASSISTANT = "system", "assistant"
SHAREGPT_ROLES = {
    "system": SYSTEM,
    "human": "user",
    "user": "user",
    "gpt": ASSISTANT,
    "chatgpt": ASSISTANT,
    "bing": ASSISTANT,
    "bard": ASSISTANT,
    "model": ASSISTANT,
    "assistant": ASSISTANT,
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
# What an assistant may say without a word of content.
INSTEAD_OF_CONTENT = ("tool_calls", "function_call", "reasoning_content", "thinking")
MAX_SHOWN = 40
# Types of parts, and the keys that what they show may be under.
PARTS: Mapping[str, Kind] = {
    "image": "image", "image_url": "image", "audio": "audio", "audio_url": "audio",
}  # fmt: skip
SHOWN_BY = ("url", "path", "base64")
# What stands for an image or a sound in plain text, as LLaVA's rows have it.
PLACES: Mapping[str, Kind] = {"<image>": "image", "<audio>": "audio"}


class ConversationError(ValueError):
    """It is no conversation; the message goes on after the name of what holds it."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a chat template is given.

    Attributes:
        messages: In order, without nulls.
        tools: JSON schemas of the tools there are, if any.
        n_given: Messages at the beginning that are a prompt: nobody learns them.
        media: Images and sounds, in the order of their parts.
    """

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] | None = None
    n_given: int = 0
    media: tuple[Value, ...] = ()


def read_conversation(
    messages: Any,
    *,
    completion: Any = None,
    tools: Any = None,
    system: Any = None,
    media: Mapping[Kind, Sequence[Any]] | None = None,
) -> Conversation:
    """Bring a row's messages into the one form.

    Args:
        messages: The conversation, or its beginning if there is a completion; JSON text of it
            will do, as a CSV file has it.
        completion: The messages that go on from there, if the row has any apart.
        tools: Schemas of tools, a list or JSON text of one.
        system: Text for a system message, if the conversation has none.
        media: Images and sounds of the row's own columns.

    Raises:
        ConversationError: Says what is wrong and what is allowed.
    """
    places = _Places(media or {})
    given = _read_messages(messages, places)
    answer = _read_messages(completion, places) if completion is not None else ()
    given = places.put_first(given)
    if system is not None and not isinstance(system, str):
        raise ConversationError(f"must have text for a system message, it has {_kind(system)}")
    if system and all(message["role"] != SYSTEM for message in given):
        given = ({"role": SYSTEM, "content": system}, *given)
    return Conversation(
        (*given, *answer),
        _read_tools(tools),
        len(given) if completion is not None else 0,
        places.filled(),
    )


@dataclass
class _Places:
    """Where images and sounds of a conversation go.

    Attributes:
        columns: Those of the row's own columns, by kind.
        found: What the parts show so far; ``None`` for the next one of a column.
    """

    columns: Mapping[Kind, Sequence[Any]]
    found: list[Value] = field(default_factory=list)

    def put_first(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """Put what no part stands for before the first words of the user."""
        kinds = {kind for kind, _ in self.found}
        left: list[Value] = [
            (kind, None)
            for kind, values in self.columns.items()
            if kind not in kinds
            for _ in values
        ]
        at = next((n for n, m in enumerate(messages) if m["role"] == "user"), None)
        if not left or at is None:
            return messages
        content = messages[at]["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        before = sum(_n_media(message["content"]) for message in messages[:at])
        self.found[before:before] = left
        shown = [{"type": kind} for kind, _ in left]
        first = messages[at] | {"content": [*shown, *parts]}
        return (*messages[:at], first, *messages[at + 1 :])

    def filled(self) -> tuple[Value, ...]:
        """All of them, in order.

        Raises:
            ConversationError: There are more or fewer than places for them.
        """
        found = list(self.found)
        for kind in ("image", "audio"):
            values = list(self.columns.get(kind, ()))
            at = [n for n, (k, value) in enumerate(found) if k == kind and value is None]
            if len(at) != len(values):
                raise ConversationError(
                    f"has {len(at)} places for an {kind}, and the row has {len(values)} in its "
                    "column: each needs one"
                )
            for n, value in zip(at, values, strict=True):
                found[n] = kind, value
        check_number(found)
        return tuple(found)


def check_number(media: Sequence[Value]) -> None:
    """Refuse more images or sounds than a row may have.

    Raises:
        ConversationError: Names the limit.
    """
    for kind, most in MOST_OF_A_ROW.items():
        n = sum(k == kind for k, _ in media)
        if n > most:
            raise ConversationError(f"has {n} of kind {kind}; a row may have {most}")


def _n_media(content: Any) -> int:
    parts = content if isinstance(content, list) else ()
    return sum(part["type"] in PARTS.values() for part in parts)


def without_nulls(value: Any) -> Any:
    """Drop every key without a value, however deep."""
    if isinstance(value, Mapping):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [without_nulls(item) for item in value]
    return value


def _read_messages(messages: Any, places: _Places) -> tuple[Message, ...]:
    messages = _from_columns(_parse(messages))
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise ConversationError(
            f"must be a list of objects with role and content, it holds {_kind(messages)}"
        )
    return tuple(_read_message(message, n, places) for n, message in enumerate(messages, 1))


def _from_columns(messages: Any) -> Any:
    """`datasets` keeps a sequence of objects as an object of sequences."""
    if not isinstance(messages, Mapping) or not messages:
        return messages
    columns = list(messages.values())
    if not all(
        isinstance(column, list) and len(column) == len(columns[0]) for column in columns
    ):
        return messages
    return [dict(zip(messages, values, strict=True)) for values in zip(*columns, strict=True)]


def _read_message(message: Any, number: int, places: _Places) -> Message:
    if not isinstance(message, Mapping):
        raise ConversationError(
            f"must be a list of objects with role and content, message {number} is "
            f"{_kind(message)}"
        )
    found: Message = without_nulls(message)
    if "role" not in found and "from" in found:
        found = _from_sharegpt(found, number)
    role = found.get("role")
    if not isinstance(role, str):
        raise ConversationError(
            f"must be a list of objects with role and content, message {number} has "
            f"{_kind(role)} as its role"
        )
    found["role"] = {"human": "user", "gpt": ASSISTANT}.get(role, role)
    return found | {"content": _read_content(found, number, places)}


def _from_sharegpt(message: Message, number: int) -> Message:
    speaker = message["from"]
    role = SHAREGPT_ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise ConversationError(
            f"has {_kind(speaker)} as the speaker of message {number}; known are "
            f"{sorted(SHAREGPT_ROLES)}, and calls of tools are written as tool_calls of a "
            "message with role and content"
        )
    rest = {key: value for key, value in message.items() if key not in {"from", "value"}}
    return rest | {"role": role} | ({"content": message["value"]} if "value" in message else {})


def _read_content(message: Message, number: int, places: _Places) -> str | list[dict[str, str]]:
    content = message.get("content")
    if content is None and any(message.get(name) for name in INSTEAD_OF_CONTENT):
        return ""
    if isinstance(content, str):
        return _with_places(content, places)
    if isinstance(content, list):
        return [_read_part(part, number, places) for part in content]
    raise ConversationError(
        f"must be a list of objects with role and content, message {number} has "
        f"{_kind(content)} as its content"
    )


def _with_places(text: str, places: _Places) -> str | list[dict[str, str]]:
    """Text as parts, where it says the places of what is in the row's own columns."""
    marks = [mark for mark, kind in PLACES.items() if mark in text and places.columns.get(kind)]
    if not marks:
        return text
    pieces = re.split(f"({'|'.join(map(re.escape, marks))})", text)
    parts: list[dict[str, str]] = []
    for piece in filter(None, pieces):
        if kind := PLACES.get(piece):
            places.found.append((kind, None))
            parts.append({"type": kind})
        else:
            parts.append({"type": "text", "text": piece})
    return parts


def _read_part(part: Any, number: int, places: _Places) -> dict[str, str]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = part.get("type", "text") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    shown = PARTS.get(kind) if isinstance(kind, str) else None
    if shown is None:
        raise ConversationError(
            f"has a part in message {number} that is {_kind(part if kind is None else kind)}; only "
            "parts of text, images and audio can be measured"
        )
    values = [part[key] for key in (kind, shown, *SHOWN_BY) if part.get(key) is not None]
    value = values[0] if values else None
    if isinstance(value, dict) and isinstance(value.get("url"), str):  # as OpenAI has it
        value = value["url"]
    places.found.append((shown, value))
    return {"type": shown}


def _read_tools(tools: Any) -> tuple[dict[str, Any], ...] | None:
    found = _parse(tools)
    if found is None or found == []:
        return None
    items = [_parse(tool) for tool in found] if isinstance(found, list) else []
    if not items or not all(isinstance(tool, dict) for tool in items):
        raise ConversationError(
            f"has tools that are {_kind(tools)}; they must be a list of JSON schemas, or JSON "
            "text of one"
        )
    return tuple(without_nulls(tool) for tool in items)


def _parse(value: Any) -> Any:
    """What JSON text stands for; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError):
        return value


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    return f"{type(value).__name__} {str(value)[:MAX_SHOWN]!r}"
