"""Which characters of a rendered conversation the assistant wrote.

Some templates say so themselves, by generation tags. Most do not, but write a conversation
from its beginning to its end: rendered as far as a turn, the text is a *prefix* of the whole.
Then a turn starts where the prompt for it ends, and ends where the conversation up to it ends,
so that the token that closes a turn belongs to it, as it does for TRL. A template that writes
earlier turns otherwise once the conversation goes on, or not in order, tells nothing.

Symbols: *header* is what comes before a turn's content, such as ``<|im_start|>assistant``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from fimlora_jobs.datasets.conversations import ASSISTANT, Conversation
from fimlora_worker.errors import DatasetSchema
from fimlora_worker.inputs.chat.templates import Rendered, Request, Span
from fimlora_worker.inputs.token_spans import n_common

Choice = Literal["assistant", "last", "all"]
DecidedBy = Literal["generation tags", "prefix", "all"]
Render = Callable[[Sequence[Request]], list[Rendered]]
NOT_A_PREFIX = (
    "{where}: the model's chat template writes message {number} otherwise once the conversation "
    "goes on, so what the assistant wrote cannot be told from the rest; set calibration."
    "chat_labels to {choices}"
)
REFUSED = "{where}: the chat template refuses it: {error}"


@dataclass(frozen=True, slots=True)
class Marked:
    """A conversation as text.

    Attributes:
        text: All of it.
        spans: The characters whose tokens are predicted.
        by: How that was decided.
    """

    text: str
    spans: tuple[Span, ...]
    by: DecidedBy


def mark_turns(
    conversation: Conversation,
    choice: Choice,
    *,
    render: Render,
    has_tags: bool,
    closing: str,
    where: str,
) -> Marked | None:
    """Render a conversation and find what the assistant wrote; ``None`` if that is nothing.

    Args:
        conversation: The row.
        choice: Every turn of the assistant, its last one, or all that there is.
        render: The template.
        has_tags: Whether it has generation tags.
        closing: A token that the template may write once at the very end.
        where: What the row is called.

    Raises:
        DatasetSchema: The template refuses the row, or does not let the turns be found.
    """
    if choice == "all":
        [whole] = render([_up_to(conversation, None)])
        text = _text(whole, where)
        return Marked(text, ((0, len(text)),), "all")
    turns = [
        i
        for i, message in enumerate(conversation.messages)
        if message["role"] == ASSISTANT and i >= conversation.n_given
    ]
    turns = turns[-1:] if choice == "last" else turns
    if not turns:
        return None
    if has_tags:
        is_part = choice == "last" or conversation.n_given > 0
        return _by_tags(conversation, turns[0] if is_part else None, render, where)
    return _by_prefix(conversation, turns, render, closing, where)


def _by_tags(
    conversation: Conversation, first: int | None, render: Render, where: str
) -> Marked:
    """What the template marks, from the given turn on."""
    if first is None:
        [whole] = render([_up_to(conversation, None)])
        return Marked(_text(whole, where), whole.spans, "generation tags")
    whole, *before = render([_up_to(conversation, None), *_beginnings(conversation, first)])
    text = _text(whole, where)
    start = _start(text, before)
    if start is None:
        raise DatasetSchema(
            NOT_A_PREFIX.format(where=where, number=first, choices="assistant or all")
        )
    return Marked(
        text, tuple((max(a, start), b) for a, b in whole.spans if b > start), "generation tags"
    )


def _by_prefix(
    conversation: Conversation, turns: Sequence[int], render: Render, closing: str, where: str
) -> Marked:
    wanted = [_up_to(conversation, None)]
    for turn in turns:
        wanted += [*_beginnings(conversation, turn), _up_to(conversation, turn + 1)]
    whole, *parts = render(wanted)
    text = _text(whole, where)
    spans = []
    for n, turn in enumerate(turns):
        *before, after = parts[3 * n : 3 * n + 3]
        start, end = _start(text, before), _end(text, after, closing)
        if start is None or end is None or not start <= end:
            raise _no_prefix(turn, turns, where)
        spans.append((start, end))
    return Marked(text, tuple(spans), "prefix")


def _no_prefix(turn: int, turns: Sequence[int], where: str) -> DatasetSchema:
    choices = "all" if turn == turns[-1] else "last (the last turn alone) or all (every token)"
    return DatasetSchema(NOT_A_PREFIX.format(where=where, number=turn + 1, choices=choices))


def _up_to(conversation: Conversation, end: int | None, *, prompt: bool = False) -> Request:
    return Request(conversation.messages[:end], conversation.tools, prompt)


def _beginnings(conversation: Conversation, turn: int) -> list[Request]:
    """What comes before a turn, without and with the header that asks for it."""
    return [_up_to(conversation, turn), _up_to(conversation, turn, prompt=True)]


def _text(rendered: Rendered, where: str) -> str:
    if rendered.error is not None:
        raise DatasetSchema(REFUSED.format(where=where, error=rendered.error))
    return rendered.text


def _start(whole: str, before: Sequence[Rendered]) -> int | None:
    """Where a turn starts; ``None`` if what comes before it is not a prefix.

    A header that asks for more than the row has, such as a thought, counts as far as it agrees.
    """
    plain, prompt = before
    if prompt.error is None and whole.startswith(prompt.text):
        return len(prompt.text)
    if plain.error is not None or not whole.startswith(plain.text):
        return None
    if prompt.error is not None:
        return len(plain.text)
    return max(len(plain.text), n_common(prompt.text, whole))


def _end(whole: str, after: Rendered, closing: str) -> int | None:
    """Where a turn ends; ``None`` if the conversation up to there is not a prefix."""
    if after.error is not None:
        return None
    if whole.startswith(after.text):
        return len(after.text)
    shorter = after.text.removesuffix(closing) if closing else after.text
    return len(shorter) if whole.startswith(shorter) else None
