"""From rows to token ids: one function per way a row can carry its text.

Symbols: an *example* is one row as token ids, with labels that are a class, a number, or
one token id per position (-100 where the model is not asked).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fimlora_jobs.datasets.columns import NO_CHAT_TEMPLATE, TextFields
from fimlora_jobs.datasets.labels import Labels
from fimlora_worker.errors import DatasetSchema

IGNORED = -100
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
    """

    tokenizer: Any
    fields: TextFields
    max_length: int
    labels: Labels | None

    def encode(self, row: Mapping[str, Any], *, where: str) -> Example | None:
        """One row as an example; ``None`` when nothing is left to predict."""
        if self.labels and self.fields.label:
            return self._classified(row, self.labels.target(row[self.fields.label]))
        if self.fields.messages:
            ids = self._chat(row[self.fields.messages], where)
            labels = list(ids)
        elif self.fields.prompt and self.fields.completion:
            ids, labels = self._completed(row[self.fields.prompt], row[self.fields.completion])
        else:
            ids = self._tokenize(row)["input_ids"]
            labels = list(ids)
        ids, labels = ids[: self.max_length], labels[: self.max_length]
        # The first token is never predicted.
        if all(label == IGNORED for label in labels[1:]):
            return None
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}

    def _classified(self, row: Mapping[str, Any], target: int | float | None) -> Example | None:
        if target is None:
            return None
        encoded = dict(self._tokenize(row))
        return {**encoded, "labels": target} if encoded["input_ids"] else None

    def _tokenize(self, row: Mapping[str, Any]) -> Mapping[str, list[int]]:
        assert self.fields.text
        pair = row[self.fields.text_pair] if self.fields.text_pair else None
        encoded: Mapping[str, list[int]] = self.tokenizer(
            row[self.fields.text], pair, truncation=True, max_length=self.max_length
        )
        return encoded

    def _completed(self, prompt: str, completion: str) -> tuple[list[int], list[int]]:
        tokenizer = self.tokenizer
        before = list(tokenizer(prompt)["input_ids"])
        if before and before[-1] in {tokenizer.eos_token_id, tokenizer.sep_token_id}:
            before.pop()  # the text goes on
        after = list(tokenizer(completion, add_special_tokens=False)["input_ids"])
        if tokenizer.eos_token_id is not None:
            after.append(tokenizer.eos_token_id)
        return before + after, [IGNORED] * len(before) + after

    def _chat(self, messages: list[dict[str, str]], where: str) -> list[int]:
        if not self.tokenizer.chat_template:
            raise DatasetSchema(NO_CHAT_TEMPLATE)
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False)
        except Exception as error:  # templates raise whatever they like
            raise DatasetSchema(f"{where}: the chat template refuses it: {error}") from error
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids
