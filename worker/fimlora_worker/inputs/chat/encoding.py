"""From a conversation to token ids and labels: rendered, marked, tokenised once."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from fimlora_jobs.datasets.conversations import Conversation, Message
from fimlora_worker.errors import DatasetSchema
from fimlora_worker.inputs.chat.assistant_turns import (
    Choice,
    DecidedBy,
    Marked,
    mark_turns,
)
from fimlora_worker.inputs.chat.templates import ChatTemplate, Limits, Request
from fimlora_worker.inputs.token_spans import label_spans

PROBE = "QZXJ"
Tokens = tuple[list[int], list[int]]


@dataclass
class ChatEncoder:
    """Makes examples of conversations, for one tokenizer and one choice of labels.

    Attributes:
        tokenizer: A transformers tokenizer.
        choice: Whose tokens carry labels.
        stack: Ends the processes that render.
        limits: What rendering one row may take.
        decided_by: How labels were decided so far.
    """

    tokenizer: Any
    choice: Choice
    stack: ExitStack
    limits: Limits | None = None
    decided_by: set[DecidedBy] = field(default_factory=set)
    _opened: "dict[bool, _Opened]" = field(default_factory=dict)

    def encode(self, conversation: Conversation, *, where: str) -> Tokens | None:
        """Token ids and labels; ``None`` when nobody is to learn any of it.

        Raises:
            DatasetSchema: The template refuses it, or hides what the assistant wrote.
            UnsupportedArchitecture: The template takes too much of the machine.
        """
        marked = self.mark(conversation, where=where)
        if marked is None:
            return None
        return label_spans(self.tokenizer, marked.text, marked.spans)

    def mark(self, conversation: Conversation, *, where: str) -> Marked | None:
        """The conversation as text, and what of it is learned; ``None`` if that is nothing.

        Raises:
            DatasetSchema: The template refuses it, or hides what the assistant wrote.
            UnsupportedArchitecture: The template takes too much of the machine.
        """
        opened = self._open(conversation, where)
        if conversation.media and not opened.takes_parts:
            raise DatasetSchema(
                f"{where} has images or sounds, and the model's chat template knows content as "
                "text alone: use prompt and completion columns beside the column of images"
            )
        messages = tuple(opened.fit(message) for message in conversation.messages)
        marked = mark_turns(
            replace(conversation, messages=messages),
            self.choice,
            render=partial(opened.template.render, where=where),
            has_tags=opened.template.has_tags,
            closing=str(self.tokenizer.eos_token or ""),
            where=where,
        )
        if marked is not None:
            self.decided_by.add(marked.by)
        return marked

    @property
    def read_date(self) -> bool:
        """Whether a template has asked what day it is."""
        return any(opened.template.read_date for opened in self._opened.values())

    def _open(self, conversation: Conversation, where: str) -> "_Opened":
        with_tools = bool(conversation.tools) and isinstance(self.tokenizer.chat_template, dict)
        if with_tools not in self._opened:
            template = ChatTemplate(self.tokenizer, with_tools=with_tools, limits=self.limits)
            self.stack.enter_context(template)
            self._opened[with_tools] = _look_at(template, where)
        return self._opened[with_tools]


@contextmanager
def chat_encoder(
    tokenizer: Any, choice: Choice, *, limits: Limits | None = None
) -> Iterator[ChatEncoder]:
    """An encoder of conversations; what it starts ends with the block."""
    with ExitStack() as stack:
        yield ChatEncoder(tokenizer, choice, stack, limits)


@dataclass(frozen=True, slots=True)
class _Opened:
    """A template, and the forms of content that it can read: text, or a list of parts."""

    template: ChatTemplate
    takes_text: bool
    takes_parts: bool

    def fit(self, message: Message) -> Message:
        """The message with its content as the template wants it."""
        content = message["content"]
        if isinstance(content, list) and not self.takes_parts:
            return message | {"content": "".join(part["text"] for part in content)}
        if isinstance(content, str) and self.takes_parts and not self.takes_text:
            return message | {"content": [{"type": "text", "text": content}]}
        return message


def _look_at(template: ChatTemplate, where: str) -> _Opened:
    """Find out by a word of our own what becomes of text and of a list of parts."""
    forms: Sequence[Any] = (PROBE, [{"type": "text", "text": PROBE}])
    text, parts = template.render(
        [Request(({"role": "user", "content": form},)) for form in forms], where=where
    )
    # A template that knows no parts writes the list as Python spells it.
    return _Opened(
        template,
        takes_text=PROBE in text.text,
        takes_parts=PROBE in parts.text and "{'type'" not in parts.text,
    )
