"""Find out which columns of a dataset carry the text, the label and the prompt.

Service and worker call the same function: the service on the first rows of an upload, so
that a wrong column is refused before queueing, the worker on what it loaded.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fimlora_contract.near_names import did_you_mean, nearest
from fimlora_contract.references import Columns
from fimlora_jobs.datasets.conversations import (
    Conversation,
    ConversationError,
    check_number,
    read_conversation,
)
from fimlora_jobs.datasets.media import Kind, MediaError, Value, check_media, values_of

Task = Literal["sequence_classification", "causal_lm"]
# As a request says it: a regression is a classification whose labels are amounts.
TaskName = Task | Literal["auto", "regression"]
MAX_NAMED = 30
MAX_SHOWN = 40
PAIRS = (("premise", "hypothesis"), ("question", "sentence"), ("sentence1", "sentence2"))
TEXTS = ("text", "sentence", "content")
LABELS = ("label", "labels")
CONVERSATIONS = ("messages", "conversations")
# Columns that say more about a text, and that an empty name leaves alone.
COMPANIONS = ("tools", "system", "input", "images", "audio")
# Usual names of those that go by several, and what they hold.
USUAL: Mapping[str, tuple[str, ...]] = {
    "images": ("images", "image"), "audio": ("audio", "audios"),
}  # fmt: skip
MEDIA: Mapping[str, Kind] = {"images": "image", "audio": "audio"}
TEXT_ROLES = ("text", "text_pair", "prompt", "completion", "instruction")
# Where a row's text begins; a row has one of these.
BEGINNINGS = ("text", "prompt", "messages", "instruction")
OF_CONVERSATIONS = ("tools", "system")
NOTHING_TOLD: tuple[Any, ...] = (None, "", [], "[]")
NO_CHAT_TEMPLATE = (
    "the rows are chat messages, but the model's tokenizer has no chat template; use a chat "
    "model, or prompt and completion columns"
)

NO_MEDIA_IN_EVALUATIONS = (
    "evaluations train on text alone, and the rows have images or sounds: calibrate with these "
    "rows, and compare by training with your own trainer"
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
    tools: str | None = None
    system: str | None = None
    instruction: str | None = None
    input: str | None = None
    images: str | None = None
    audio: str | None = None

    @property
    def task(self) -> Task:
        """Rows with a label are classified, all others are modelled as text."""
        return "sequence_classification" if self.label else "causal_lm"

    def on_record(self) -> dict[str, str | None]:
        """What a job's record, and the digests made of it, say of them."""
        fields: dict[str, str | None] = asdict(self)
        return {role: name for role, name in fields.items() if name or role not in MEDIA}


def used_columns(fields: TextFields) -> list[str]:
    """Names of the columns that have a role."""
    return [name for name in asdict(fields).values() if name is not None]


def check_same(train: TextFields, held_out: TextFields) -> None:
    """See that held-out rows are read by the columns that training rows are.

    Raises:
        ColumnError: They are not; the message has both.
    """
    if train != held_out:
        one, other = _named(train), _named(held_out)
        raise ColumnError(
            f"the rows to train on are read as {one}, the held-out rows as {other}: both must "
            "have the same columns; rename those of one, or name them by columns of both"
        )


def check_retained(fields: TextFields, retained: TextFields) -> None:
    """See that rows to retain carry what the rows at hand do; columns may go by other names.

    Raises:
        ColumnError: They do not; the message has both.
    """
    one, other = _named(fields), _named(retained)
    if fields.task != retained.task or one.keys() != other.keys():
        raise ColumnError(
            f"the rows of the dataset are read as {one}, the rows to retain as {other}: both must "
            "carry the same; name the columns of both by columns"
        )


def _named(fields: TextFields) -> dict[str, str]:
    """The columns in use, by what they carry."""
    return {role: name for role, name in asdict(fields).items() if name}


def find_fields(
    names: Sequence[str], *, columns: Columns, task: TaskName = "auto"
) -> TextFields:
    """Choose the columns: those that were given, the rest by their usual names.

    Raises:
        ColumnError: A given column does not exist or would not be read, no usual name was found,
            or there are images or sounds beside two texts.
    """
    said = {role: name for role, name in columns.model_dump().items() if name is not None}
    given = {role: name for role, name in said.items() if name}
    left_out = said.keys() - given.keys()
    if needed := sorted(left_out - {*COMPANIONS}):
        raise ColumnError(
            f"dataset.columns has an empty name for {needed[0]}; an empty name leaves a column "
            f"alone, and is allowed for {', '.join(COMPANIONS)}"
        )
    missing = sorted(set(given.values()) - set(names))
    if missing:
        near = did_you_mean(missing[0], names)
        raise ColumnError(f"no column {missing[0]!r}; the columns are {listed(names)}{near}")
    if "text_pair" in given and "text" not in given:
        raise ColumnError("dataset.columns names a text_pair without a text")
    if given.get("label") and (media := sorted(given.keys() & MEDIA.keys())):
        raise ColumnError(
            f"dataset.columns names a label and {media[0]}: rows with a label are classified by "
            "their text alone; leave one of them out"
        )
    fields = TextFields(**given) if _has_text(given) else _by_convention(names, given, task)
    _check_one_beginning(given)
    fields = _fit_task(fields, names=names, task=task)
    fields = _with_companions(fields, names, given, left_out)
    _check_one_text(fields)
    _check_all_read(fields, given, task)
    return fields


def _has_text(given: Mapping[str, str]) -> bool:
    return bool({"text", "prompt", "completion", "messages", "instruction"} & set(given))


def _check_one_beginning(given: Mapping[str, str]) -> None:
    found = [role for role in BEGINNINGS if role in given]
    if len(found) > 1:
        raise ColumnError(
            f"dataset.columns names {' and '.join(found)}: a row is read as one of "
            f"{', '.join(BEGINNINGS)}; leave the others out"
        )


def _check_one_text(fields: TextFields) -> None:
    """What is seen or heard goes beside one text: no processor of a model takes two."""
    shown = [name for role in MEDIA if (name := getattr(fields, role))]
    if fields.text_pair and shown:
        raise ColumnError(
            f"the rows have {shown[0]!r} beside two texts, {fields.text!r} and "
            f"{fields.text_pair!r}: images and sounds go beside one text; join the two in one column, "
            "or name one of them (--column text=...), or leave the images or sounds alone by an empty "
            "name (--column images=, --column audio=)"
        )


def _check_all_read(fields: TextFields, given: Mapping[str, str], task: TaskName) -> None:
    """See that no column that was named is left aside, but for a label that the task leaves."""
    unread = [role for role, name in given.items() if getattr(fields, role) != name]
    if task == "causal_lm":
        unread = [role for role in unread if role != "label"]
    if unread:
        name = given[unread[0]]
        way_out = (
            "set task causal_lm, which leaves the label alone"
            if fields.label and unread[0] in MEDIA
            else "name the columns that it belongs to"
        )
        raise ColumnError(
            f"dataset.columns names {unread[0]} ({name!r}), which would not be read: the rows are read "
            f"as {_named(fields)}; leave it out, or {way_out}"
        )


def _with_companions(
    fields: TextFields, names: Sequence[str], given: Mapping[str, str], left_out: Set[str]
) -> TextFields:
    """Add the columns that say more about a conversation or an instruction."""

    def find(role: str) -> str | None:
        if role in given or role in left_out:
            return given.get(role)
        usual = [name for name in USUAL.get(role, (role,)) if name in names]
        if len(usual) > 1:
            raise ColumnError(
                f"the rows have {' and '.join(map(repr, usual))}, of which one is read: say which "
                f"(--column {role}={usual[0]}), or leave both alone by an empty name "
                f"(--column {role}=)"
            )
        return usual[0] if usual else None

    if fields.label:
        return TextFields(text=fields.text, text_pair=fields.text_pair, label=fields.label)
    fields = replace(
        fields, images=find("images"), audio=find("audio"), tools=None, system=None, input=None
    )
    if fields.messages:
        return replace(fields, tools=find("tools"), system=find("system"))
    if fields.prompt:
        return replace(fields, tools=find("tools"), system=given.get("system"))
    return replace(fields, input=find("input")) if fields.instruction else fields


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
    expected = (
        f"expected one of {list(TEXTS)}, a pair such as premise/hypothesis, prompt/completion, "
        "instruction/output, messages or conversations"
    )
    if not names:
        raise ColumnError(f"the rows have no columns; {expected}")
    name = _likely_text(names, {label, *given.values()})
    hint = "" if name is None else f"; or say which column is what: {_example(name)}"
    raise ColumnError(f"no text column among {listed(names)}; {expected}{hint}")


def _likely_text(names: Sequence[str], taken: Set[str | None]) -> str | None:
    """The column that may hold the text: one named like it, else the first that is no label."""
    free = [name for name in names if name not in taken and name.lower() not in LABELS]
    near = (nearest(text, free) for text in TEXTS)
    return next((name for name in near if name), min(free, default=None))


def _example(name: str) -> str:
    """How a column is named, in both spellings."""
    name = name[:MAX_SHOWN]
    return f'--column text={name}, or "columns": {{"text": "{name}"}} of the dataset in a body'


def _without_label(present: Set[str]) -> TextFields | None:
    for messages in CONVERSATIONS:
        if messages in present:
            return TextFields(messages=messages)
    if {"prompt", "completion"} <= present:
        return TextFields(prompt="prompt", completion="completion")
    if {"instruction", "output"} <= present:
        return TextFields(instruction="instruction", completion="output")
    return None


def listed(names: Sequence[str]) -> str:
    """Column names for a message: sorted, and not all of very many."""
    shown = sorted(names)[:MAX_NAMED]
    more = len(names) - len(shown)
    return f"{shown} and {more} more" if more else f"{shown}"


def _fit_task(fields: TextFields, *, names: Sequence[str], task: TaskName) -> TextFields:
    if fields.completion and not (fields.prompt or fields.instruction):
        raise ColumnError("dataset.columns names a completion without a prompt")
    if fields.prompt and not fields.completion:
        raise ColumnError("dataset.columns names a prompt without a completion")
    if fields.instruction and not fields.completion:
        raise ColumnError("dataset.columns names an instruction without a completion")
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
            text_pair=fields.text_pair,
            prompt=fields.prompt,
            completion=fields.completion,
            messages=fields.messages,
            instruction=fields.instruction,
        )
    return fields


def check_row(
    row: Mapping[str, Any], fields: TextFields, *, where: str, beside: Path | None = None
) -> tuple[Value, ...]:
    """Refuse a row whose used columns are absent or of the wrong kind.

    Args:
        row: The row.
        fields: The columns in use.
        where: What the row is called.
        beside: Folder of the rows, if files in it may be named.

    Returns:
        Its images and sounds.

    Raises:
        ColumnError: Names the row (``where``), the column and what it holds.
    """
    conversation = conversation_of(row, fields, where=where)
    is_chat = conversation is not None
    for role in TEXT_ROLES:
        name = getattr(fields, role)
        if name is not None and not is_chat and not isinstance(row.get(name), str):
            raise ColumnError(
                f"{where}: column {name!r} must be text, it holds {_kind(row, name)}"
            )
    if not is_chat:
        _check_no_conversation(row, fields, where)
    if fields.input is not None and not isinstance(row.get(fields.input), str | None):
        raise ColumnError(
            f"{where}: column {fields.input!r} must be text or nothing, it holds "
            f"{_kind(row, fields.input)}"
        )
    if fields.label is not None and not isinstance(row.get(fields.label), str | int | float):
        raise ColumnError(
            f"{where}: column {fields.label!r} must be a label (text, integer or number), "
            f"it holds {_kind(row, fields.label)}"
        )
    media = (
        conversation.media if conversation is not None else media_of(row, fields, where=where)
    )
    for number, (kind, value) in enumerate(media, 1):
        try:
            check_media(value, kind, beside=beside)
        except MediaError as error:
            raise ColumnError(f"{where}, {kind} {number} of it, {error}") from error
    return media


def text_columns(fields: TextFields) -> list[str]:
    """Names of the columns that a row's text is in; of chats, that of the messages."""
    roles = ("messages", *TEXT_ROLES, "input")
    return [repr(name) for role in roles if (name := getattr(fields, role)) is not None]


def says_nothing(row: Mapping[str, Any], fields: TextFields) -> bool:
    """Whether a row that was checked has blank text alone, and shows nothing beside it."""
    if fields.messages or fields.images or fields.audio:
        return False
    texts = (
        row.get(name) for role in (*TEXT_ROLES, "input") if (name := getattr(fields, role))
    )
    return all(text is None or (isinstance(text, str) and not text.strip()) for text in texts)


def _check_no_conversation(row: Mapping[str, Any], fields: TextFields, where: str) -> None:
    """Text goes through no chat template, which alone would tell the model of these."""
    for role in OF_CONVERSATIONS:
        name = getattr(fields, role)
        if name is not None and row.get(name) not in NOTHING_TOLD:
            raise ColumnError(
                f"{where}: column {name!r} holds {_kind(row, name)}, and the text beside it goes "
                f"through no chat template that would read {role}: give the prompt and the completion "
                f"as lists of messages, or leave it alone by an empty name (--column {role}=)"
            )


def media_of(row: Mapping[str, Any], fields: TextFields, *, where: str) -> tuple[Value, ...]:
    """Images and sounds of a row's columns.

    Raises:
        ColumnError: There are too many; names the row.
    """
    found: list[Value] = []
    for role, kind in MEDIA.items():
        found += [(kind, value) for value in values_of(row.get(getattr(fields, role) or ""))]
    try:
        check_number(found)
    except ConversationError as error:
        raise ColumnError(f"{where} {error}") from error
    return tuple(found)


def conversation_of(
    row: Mapping[str, Any], fields: TextFields, *, where: str
) -> Conversation | None:
    """A row's messages; ``None`` if its text does not go through a chat template.

    Raises:
        ColumnError: Names the row, the column and what is wrong there.
    """
    if not has_chat(row, fields):
        return None
    name = fields.messages or fields.prompt or ""
    completion = None if fields.messages else row.get(fields.completion or "")
    if not (fields.messages or isinstance(completion, list)):
        raise ColumnError(
            f"{where}: column {fields.completion!r} must be a list of messages as column {name!r} "
            f"is, it holds {_kind(row, fields.completion or '')}"
        )
    try:
        return read_conversation(
            row.get(name),
            completion=completion,
            tools=row.get(fields.tools or ""),
            system=row.get(fields.system or ""),
            media={
                kind: values_of(row.get(getattr(fields, role) or ""))
                for role, kind in MEDIA.items()
            },
        )
    except ConversationError as error:
        raise ColumnError(f"{where}: column {name!r} {error}") from error


def has_chat(row: Mapping[str, Any], fields: TextFields) -> bool:
    """Whether a row's text goes through a chat template: messages, not text with a label."""
    if fields.label is not None:
        return False
    if fields.messages is not None:
        return True
    return isinstance(row.get(fields.prompt or ""), list)


def _kind(row: Mapping[str, Any], name: str) -> str:
    if name not in row:
        return "nothing"
    value = row[name]
    return "null" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
