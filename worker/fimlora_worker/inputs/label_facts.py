"""What provenance says of the labels: how many tokens carry one, and how that was decided."""

from collections.abc import Sequence
from typing import Any

from fimlora_jobs.datasets.columns import TextFields
from fimlora_worker.inputs.chat.encoding import ChatEncoder
from fimlora_worker.inputs.chat.template_date import TEMPLATE_DATE
from fimlora_worker.inputs.examples import Example
from fimlora_worker.inputs.token_spans import IGNORED


def label_facts(
    examples: Sequence[Example], fields: TextFields, chat: ChatEncoder, *, is_pair: bool = False
) -> dict[str, Any]:
    """Facts for a plan's provenance; none where a row has one label and not one per token."""
    if fields.label:
        return {}
    # The first token of a row is never predicted; of a completion that is a sequence, it is.
    first = 0 if is_pair else 1
    facts: dict[str, Any] = {
        "tokens": sum(len(example["labels"]) for example in examples),
        "labelled_tokens": sum(
            label != IGNORED for example in examples for label in example["labels"][first:]
        ),
        "labels_by": sorted(chat.decided_by) or ["completion" if fields.completion else "all"],
    }
    if chat.decided_by:
        facts["chat_labels"] = chat.choice
    if chat.read_date:
        facts["template_date"] = TEMPLATE_DATE.isoformat()
    return facts
