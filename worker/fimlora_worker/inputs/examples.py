"""From rows to token ids: one function per way a row can carry its text.

Symbols: an *example* is one row as token ids, with labels that are a class, a number, or
one token id per position (-100 where the model is not asked).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fimlora_jobs.datasets.columns import (
    ColumnError,
    TextFields,
    conversation_of,
    has_chat,
    media_of,
)
from fimlora_jobs.datasets.conversations import Conversation
from fimlora_jobs.datasets.labels import Labels
from fimlora_worker.errors import DatasetSchema
from fimlora_worker.inputs.chat.encoding import ChatEncoder
from fimlora_worker.inputs.cutting import cut_text
from fimlora_worker.inputs.instructions import instruction_prompt
from fimlora_worker.inputs.media.encoding import MediaEncoder
from fimlora_worker.inputs.token_spans import IGNORED, label_spans

NO_CHAT_FOR_PAIRS = (
    "an encoder-decoder needs prompt and completion as text, and these are chat messages"
)
Example = dict[str, Any]
Encode = Callable[[Mapping[str, Any]], Example]


@dataclass(frozen=True)
class Encoder:
    """Turns rows into examples for one tokenizer.

    Attributes:
        tokenizer: A transformers tokenizer.
        fields: Which columns carry what.
        max_length: Longer examples are cut at the end.
        labels: What the label column means; ``None`` for language modelling.
        chat: For rows of messages; needed only where there are any.
        media: For rows with images or sounds; without it, none may have any.
        is_pair: Whether the model reads a prompt and writes a completion, each a sequence of
            its own.
    """

    tokenizer: Any
    fields: TextFields
    max_length: int
    labels: Labels | None
    chat: ChatEncoder | None = None
    media: MediaEncoder | None = None
    is_pair: bool = False

    def encode(self, row: Mapping[str, Any], *, where: str) -> Example | None:
        """One row as an example; ``None`` when nothing is left to predict."""
        if self.labels and self.fields.label:
            return self._classified(row, self.labels.target(row[self.fields.label]))
        if self.is_pair:
            return self._paired(row, where)
        if self.media is not None:
            return self._seen(row, self.media, where)
        tokens = self._tokens(row, where)
        if tokens is None:
            return None
        ids, labels = (part[: self.max_length] for part in tokens)
        # The first token is never predicted.
        if all(label == IGNORED for label in labels[1:]):
            return None
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}

    def _seen(
        self, row: Mapping[str, Any], encoder: MediaEncoder, where: str
    ) -> Example | None:
        """What a model reads that sees and hears, too."""
        conversation = self._conversation(row, where)
        if conversation is not None:
            assert self.chat
            marked = self.chat.mark(conversation, where=where)
            if marked is None:
                return None
            return encoder.encode(marked.text, marked.spans, conversation.media, where=where)
        media = media_of(row, self.fields, where=where)
        completion = str(row[self.fields.completion]) if self.fields.completion else ""
        before = self._prompt(row) if completion else str(row[self.fields.text or ""])
        before = encoder.placed(before, media, where=where)
        text, start = before + completion, len(before) if completion else 0
        return encoder.encode(
            text, [(start, len(text))], media, where=where, add_special_tokens=True,
            ends=bool(completion),
        )  # fmt: skip

    def _conversation(self, row: Mapping[str, Any], where: str) -> Conversation | None:
        try:
            return conversation_of(row, self.fields, where=where)
        except ColumnError as error:
            raise DatasetSchema(str(error)) from error

    def _tokens(self, row: Mapping[str, Any], where: str) -> tuple[list[int], list[int]] | None:
        conversation = self._conversation(row, where)
        if conversation is not None:
            assert self.chat
            return self.chat.encode(conversation, where=where)
        if self.fields.completion:
            return self._completed(self._prompt(row), row[self.fields.completion])
        ids = self._tokenize(row)["input_ids"]
        return ids, list(ids)

    def _prompt(self, row: Mapping[str, Any]) -> str:
        if self.fields.instruction:
            given = row.get(self.fields.input or "")
            return instruction_prompt(row[self.fields.instruction], given)
        return str(row[self.fields.prompt or ""])

    def _classified(self, row: Mapping[str, Any], target: int | float | None) -> Example | None:
        if target is None:
            return None
        encoded = dict(self._tokenize(row))
        return {**encoded, "labels": target} if encoded["input_ids"] else None

    def _paired(self, row: Mapping[str, Any], where: str) -> Example | None:
        """What an encoder reads, and what its decoder writes: to the end, as it is trained."""
        if has_chat(row, self.fields):
            raise DatasetSchema(f"{where}: {NO_CHAT_FOR_PAIRS}")
        completion = row[self.fields.completion or ""]
        options = {"truncation": True, "max_length": self.max_length}
        encoded = dict(self.tokenizer(self._cut(self._prompt(row)), **options))
        target = self.tokenizer(text_target=self._cut(completion), **options)
        labels, end = list(target["input_ids"]), self.tokenizer.eos_token_id
        if end is not None and end not in labels:
            labels = [*labels[: self.max_length - 1], end]
        if not encoded["input_ids"] or not completion:
            return None
        return {**encoded, "labels": labels}

    def _tokenize(self, row: Mapping[str, Any]) -> Mapping[str, list[int]]:
        assert self.fields.text
        from_end = self.tokenizer.truncation_side == "left"
        text = self._cut(row[self.fields.text], from_end=from_end)
        pair = None
        if self.fields.text_pair:
            pair = self._cut(row[self.fields.text_pair], from_end=from_end)
        encoded: Mapping[str, list[int]] = self.tokenizer(
            text, pair, truncation=True, max_length=self.max_length
        )
        return encoded

    def _cut(self, text: str, *, from_end: bool = False) -> str:
        return cut_text(text, self.tokenizer, max_length=self.max_length, from_end=from_end)

    def _completed(self, prompt: str, completion: str) -> tuple[list[int], list[int]]:
        """One text, as it is trained on: tokens may reach over the end of the prompt."""
        tokenizer, text = self.tokenizer, self._cut(prompt + completion)
        ids, labels = label_spans(
            tokenizer, text, [(len(prompt), len(text))], add_special_tokens=True
        )
        ends = {tokenizer.eos_token_id, tokenizer.sep_token_id}
        while ids and ids[-1] in ends:  # the tokenizer's or the row's; one is enough
            ids.pop(), labels.pop()
        if tokenizer.eos_token_id is not None:
            ids.append(tokenizer.eos_token_id)
            labels.append(tokenizer.eos_token_id)
        return ids, labels
