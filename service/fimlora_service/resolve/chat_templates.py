"""Which chat templates a model's tokenizer has, told by its files without loading it.

transformers takes one from ``chat_template.jinja``, from the templates in
``additional_chat_templates``, or from ``tokenizer_config.json``; what ``chat_template.json``
says is for processors. Where the files leave a doubt, the worker decides: it has the tokenizer.
"""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from fimlora_jobs.datasets.columns import NO_CHAT_TEMPLATE
from fimlora_service.errors import DatasetSchema, UnsupportedArchitecture
from fimlora_service.resolve.model_files import MAX_CONFIG_BYTES

TOKENIZER_CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates"
# A tokenizer of another library brings a template in its code.
BRINGS_ONE = "tekken.json"
DEFAULT, WITH_TOOLS = "default", "tool_use"
WAY_OUT = "use prompt and completion columns with text, or a model with another template"


@dataclass(frozen=True, slots=True)
class ChatTemplates:
    """What the files of a tokenizer say of its chat templates.

    Attributes:
        by_name: The templates; one that cannot be known here is ``None``.
        are_named: Whether there are several to choose from, so that one must be the default.
        is_certain: Whether it has these and no others.
    """

    by_name: Mapping[str, str | None] = field(default_factory=dict)
    are_named: bool = False
    is_certain: bool = True

    def check(self, *, may_have_tools: bool) -> None:
        """Refuse conversations that no template can turn into text.

        Args:
            may_have_tools: Whether rows may come with tools, which can have a template of
                their own.

        Raises:
            DatasetSchema: There is no template.
            UnsupportedArchitecture: There is none to be taken, or none that is sound.
        """
        if not self.is_certain:
            return
        if not self.by_name:
            raise DatasetSchema(NO_CHAT_TEMPLATE)
        names = [WITH_TOOLS, DEFAULT] if self.are_named and may_have_tools else [DEFAULT]
        wanted = [self.by_name[name] for name in names if name in self.by_name]
        if not wanted:
            raise UnsupportedArchitecture(
                "the model's tokenizer has several chat templates and none that is called "
                f"default: {sorted(self.by_name)}; {WAY_OUT}"
            )
        faults = [text is not None and _fault_of(text) for text in wanted]
        if all(faults):
            raise UnsupportedArchitecture(
                f"the model's chat template is not sound: {faults[-1]}; {WAY_OUT}"
            )


def read_templates(names: Collection[str], *, read: Callable[[str], Path]) -> ChatTemplates:
    """Find the chat templates of a tokenizer.

    Args:
        names: All files of the model, by their path inside it.
        read: Brings one of them here; called for those that templates are in.
    """
    if BRINGS_ONE in names:
        return ChatTemplates(is_certain=False)
    found = {DEFAULT: _text_of(read(TEMPLATE))} if TEMPLATE in names else {}
    for name in sorted(names):
        path = PurePath(name)
        if str(path.parent) == TEMPLATE_FOLDER and path.suffix == ".jinja":
            found[path.stem] = _text_of(read(name))
    if found:
        return ChatTemplates(found, are_named=[*found] != [DEFAULT])
    if TOKENIZER_CONFIG in names:
        return _of_config(read(TOKENIZER_CONFIG))
    return ChatTemplates()


def templates_in(folder: Path) -> ChatTemplates:
    """The same of a model in a folder here."""
    extra = folder.glob(f"{TEMPLATE_FOLDER}/*")
    names = {str(path.relative_to(folder)) for path in (*folder.iterdir(), *extra)}
    return read_templates(names, read=lambda name: folder / name)


def _of_config(file: Path) -> ChatTemplates:
    try:
        if file.stat().st_size > MAX_CONFIG_BYTES:
            return ChatTemplates(is_certain=False)
        config = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return ChatTemplates(is_certain=False)  # what is wrong with it is said elsewhere
    given = config.get("chat_template") if isinstance(config, dict) else config
    match given:
        case None | "" | []:
            return ChatTemplates()
        case str():
            return ChatTemplates({DEFAULT: given})
        case [*entries] if all(map(_is_named, entries)):
            named = {entry["name"]: entry["template"] for entry in entries}
            return ChatTemplates(named, are_named=True)
    return ChatTemplates(is_certain=False)


def _is_named(entry: Any) -> bool:
    match entry:
        case {"name": str(), "template": str()}:
            return True
    return False


def _text_of(file: Path) -> str | None:
    """A template of its own; ``None`` if it is too large to be looked at.

    Raises:
        UnsupportedArchitecture: It is no text.
    """
    if file.stat().st_size > MAX_CONFIG_BYTES:
        return None
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UnsupportedArchitecture(
            f"the model's {file.name} is not UTF-8 at byte {error.start}"
        ) from error


def _fault_of(text: str) -> str | None:
    from fimlora_service.resolve.template_syntax import fault_of

    return fault_of(text)
