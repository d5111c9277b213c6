"""A row's messages as chat templates want them, whichever of the usual shapes they come in.

Known are OpenAI's messages (``role``, ``content``), ShareGPT's (``from``, ``value``) and prompt
and completion as lists of either. What Arrow fills into structs, a null for each key that
another row has, is dropped: the same rows read the same from JSONL and from Parquet.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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


class ConversationError(ValueError):
    """It is no conversation; the message goes on after the name of what holds it."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a chat template is given.

    Attributes:
        messages: In order, without nulls.
        tools: JSON schemas of the tools there are, if any.
        n_given: Messages at the beginning that are a prompt: nobody learns them.
    """

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] | None = None
    n_given: int = 0


def read_conversation(
    messages: Any, *, completion: Any = None, tools: Any = None, system: Any = None
) -> Conversation:
    """Bring a row's messages into the one form.

    Args:
        messages: The conversation, or its beginning if there is a completion; JSON text of it
            will do, as a CSV file has it.
        completion: The messages that go on from there, if the row has any apart.
        tools: Schemas of tools, a list or JSON text of one.
        system: Text for a system message, if the conversation has none.

    Raises:
        ConversationError: Says what is wrong and what is allowed.
    """
    given = _read_messages(messages)
    answer = _read_messages(completion) if completion is not None else ()
    if system is not None and not isinstance(system, str):
        raise ConversationError(f"must have text for a system message, it has {_kind(system)}")
    if system and all(message["role"] != SYSTEM for message in given):
        given = ({"role": SYSTEM, "content": system}, *given)
    return Conversation(
        (*given, *answer), _read_tools(tools), len(given) if completion is not None else 0
    )


def without_nulls(value: Any) -> Any:
    """Drop every key without a value, however deep."""
    if isinstance(value, Mapping):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [without_nulls(item) for item in value]
    return value


def _read_messages(messages: Any) -> tuple[Message, ...]:
    messages = _from_columns(_parse(messages))
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise ConversationError(
            f"must be a list of objects with role and content, it holds {_kind(messages)}"
        )
    return tuple(_read_message(message, n) for n, message in enumerate(messages, 1))


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


def _read_message(message: Any, number: int) -> Message:
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
    return found | {"content": _read_content(found, number)}


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


def _read_content(message: Message, number: int) -> str | list[dict[str, str]]:
    content = message.get("content")
    if content is None and any(message.get(name) for name in INSTEAD_OF_CONTENT):
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return [_read_part(part, number) for part in content]
    raise ConversationError(
        f"must be a list of objects with role and content, message {number} has "
        f"{_kind(content)} as its content"
    )


def _read_part(part: Any, number: int) -> dict[str, str]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = part.get("type", "text") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    raise ConversationError(
        f"has a part in message {number} that is {_kind(part if kind is None else kind)}; only "
        "parts of text can be measured"
    )


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
