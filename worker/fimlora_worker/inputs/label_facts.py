"""What provenance says of the labels: classes with their counts, or tokens that carry one."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from fimlora_jobs.datasets.columns import TextFields
from fimlora_jobs.datasets.labels import Labels
from fimlora_worker.inputs.chat.encoding import ChatEncoder
from fimlora_worker.inputs.chat.template_date import TEMPLATE_DATE
from fimlora_worker.inputs.examples import Example
from fimlora_worker.inputs.token_spans import IGNORED

MOST_COUNTED = 50


def label_facts(
    examples: Sequence[Example],
    fields: TextFields,
    chat: ChatEncoder,
    labels: Labels | None,
    *,
    is_pair: bool = False,
) -> dict[str, Any]:
    """Facts for a plan's provenance: of classes or of tokens; none of a regression."""
    if fields.label:
        return class_facts([example["labels"] for example in examples], labels)
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


def class_facts(ids: Sequence[int], labels: Labels | None) -> dict[str, Any]:
    """How many classes there are and how many occur; few are counted one by one."""
    if labels is None or not labels.classes:
        return {}
    counts = Counter(ids)
    facts: dict[str, Any] = {"classes": len(labels.classes), "classes_seen": len(counts)}
    if len(labels.classes) <= MOST_COUNTED:
        named = {str(label): counts[number] for number, label in enumerate(labels.classes)}
        facts["label_counts"] = named
    return facts
