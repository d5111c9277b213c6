"""Find out which columns of a dataset carry the text, the label and the prompt.

Service and worker call the same function: the service on the first rows of an upload, so
that a wrong column is refused before queueing, the worker on what it loaded.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fimlora_contract.references import Columns

Task = Literal["sequence_classification", "causal_lm"]
# As a request says it: a regression is a classification whose labels are amounts.
TaskName = Task | Literal["auto", "regression"]
MAX_NAMED = 30
PAIRS = (("premise", "hypothesis"), ("question", "sentence"), ("sentence1", "sentence2"))
TEXTS = ("text", "sentence", "content")
LABELS = ("label", "labels")
NO_CHAT_TEMPLATE = (
    "the rows are chat messages, but the model's tokenizer has no chat template; use a chat "
    "model, or prompt and completion columns"
)


class ColumnError(ValueError):
    """The rows lack a column that is needed; the message lists the columns there are."""


@dataclass(frozen=True, slots=True)
class TextFields:
    """The columns to read, by role; a role that is not used is ``None``."""

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None

    @property
    def task(self) -> Task:
        """Rows with a label are classified, all others are modelled as text."""
        return "sequence_classification" if self.label else "causal_lm"


def used_columns(fields: TextFields) -> list[str]:
    """Names of the columns that have a role."""
    return [name for name in asdict(fields).values() if name is not None]


def find_fields(
    names: Sequence[str], *, columns: Columns, task: TaskName = "auto"
) -> TextFields:
    """Choose the columns: those that were given, the rest by their usual names.

    Raises:
        ColumnError: A given column does not exist, or no usual name was found.
    """
    given = {role: name for role, name in columns.model_dump().items() if name is not None}
    missing = sorted(set(given.values()) - set(names))
    if missing:
        raise ColumnError(f"no column {missing[0]!r}; the columns are {listed(names)}")
    if "text_pair" in given and "text" not in given:
        raise ColumnError("dataset.columns names a text_pair without a text")
    fields = TextFields(**given) if _has_text(given) else _by_convention(names, given, task)
    return _fit_task(fields, names=names, task=task)


def _has_text(given: Mapping[str, str]) -> bool:
    return bool({"text", "prompt", "completion", "messages"} & set(given))


def _by_convention(
    names: Sequence[str], given: Mapping[str, str], task: TaskName
) -> TextFields:
    present = set(names)
    label = given.get("label") or next((name for name in LABELS if name in present), None)
    if task == "causal_lm":
        label = None
    unlabelled = _without_label(present)
    if label is None and unlabelled:
        return unlabelled
    for first, second in PAIRS:
        if {first, second} <= present:
            return TextFields(text=first, text_pair=second, label=label)
    for text in TEXTS:
        if text in present:
            return TextFields(text=text, label=label)
    if unlabelled and task == "auto" and "label" not in given:
        return unlabelled  # preferences: the label says whether the completion is wanted
    raise ColumnError(
        f"no text column among {listed(names)}; expected one of {list(TEXTS)}, a pair such as "
        "premise/hypothesis, prompt/completion or messages, or name it in dataset.columns"
    )


def _without_label(present: Set[str]) -> TextFields | None:
    if "messages" in present:
        return TextFields(messages="messages")
    if {"prompt", "completion"} <= present:
        return TextFields(prompt="prompt", completion="completion")
    return None


def listed(names: Sequence[str]) -> str:
    """Column names for a message: sorted, and not all of very many."""
    shown = sorted(names)[:MAX_NAMED]
    more = len(names) - len(shown)
    return f"{shown} and {more} more" if more else f"{shown}"


def _fit_task(fields: TextFields, *, names: Sequence[str], task: TaskName) -> TextFields:
    if fields.completion and not fields.prompt:
        raise ColumnError("dataset.columns names a completion without a prompt")
    if fields.prompt and not fields.completion:
        raise ColumnError("dataset.columns names a prompt without a completion")
    if fields.label and not fields.text and task != "causal_lm":
        raise ColumnError(
            "dataset.columns names a label, and rows with a label are classified by their text: "
            "name the text column too, or leave the label out, or set task causal_lm"
        )
    if fields.label is None and fields.text and task != "causal_lm":
        label = next((name for name in LABELS if name in names), None)
        fields = TextFields(text=fields.text, text_pair=fields.text_pair, label=label)
    if task in {"sequence_classification", "regression"} and fields.label is None:
        raise ColumnError(f"task {task} needs a label column; the columns are {listed(names)}")
    if task == "causal_lm":
        return TextFields(
            text=fields.text,
            prompt=fields.prompt,
            completion=fields.completion,
            messages=fields.messages,
        )
    return fields


def check_row(row: Mapping[str, Any], fields: TextFields, *, where: str) -> None:
    """Refuse a row whose used columns are absent or of the wrong kind.

    Raises:
        ColumnError: Names the row (``where``), the column and what it holds.
    """
    for role in ("text", "text_pair", "prompt", "completion"):
        name = getattr(fields, role)
        if name is not None and not isinstance(row.get(name), str):
            raise ColumnError(
                f"{where}: column {name!r} must be text, it holds {_kind(row, name)}"
            )
    if fields.messages is not None:
        _check_messages(row.get(fields.messages), where=f"{where}: column {fields.messages!r}")
    if fields.label is not None and not isinstance(row.get(fields.label), str | int | float):
        raise ColumnError(
            f"{where}: column {fields.label!r} must be a label (text, integer or number), "
            f"it holds {_kind(row, fields.label)}"
        )


def _check_messages(messages: Any, *, where: str) -> None:
    sound = (
        isinstance(messages, list)
        and messages
        and all(
            isinstance(m, Mapping)
            and isinstance(m.get("role"), str)
            and isinstance(m.get("content"), str)
            for m in messages
        )
    )
    if not sound:
        raise ColumnError(f"{where} must be a list of objects with role and content")


def _kind(row: Mapping[str, Any], name: str) -> str:
    if name not in row:
        return "nothing"
    value = row[name]
    return "null" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
