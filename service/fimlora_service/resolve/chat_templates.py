"""Whether a model's tokenizer has a chat template, told by its files without loading it.

transformers takes one from ``chat_template.jinja``, from the templates in
``additional_chat_templates``, or from ``tokenizer_config.json``; what ``chat_template.json``
says is for processors. Where the files leave a doubt, the worker decides: it has the tokenizer.
"""

import json
from collections.abc import Callable, Collection
from pathlib import Path

from fimlora_service.resolve.model_files import MAX_CONFIG_BYTES

TOKENIZER_CONFIG = "tokenizer_config.json"
TEMPLATE_FOLDER = "additional_chat_templates"
# A tokenizer of another library (tekken.json) brings a template in its code.
BRINGS_ONE = frozenset({"chat_template.jinja", "tekken.json"})


def may_have_template(names: Collection[str], *, read: Callable[[], Path]) -> bool:
    """Whether a tokenizer has a chat template, or may have one.

    Args:
        names: All files of the model, by their path inside it.
        read: Brings its ``tokenizer_config.json`` here; called only if it has one.
    """
    if any(name in BRINGS_ONE or name.startswith(f"{TEMPLATE_FOLDER}/") for name in names):
        return True
    return TOKENIZER_CONFIG in names and _names_template(read())


def folder_may_have_template(folder: Path) -> bool:
    """The same of a model in a folder here."""
    names = {path.name for path in folder.iterdir()}
    extra = {f"{TEMPLATE_FOLDER}/{path.name}" for path in folder.glob(f"{TEMPLATE_FOLDER}/*")}
    return may_have_template(names | extra, read=lambda: folder / TOKENIZER_CONFIG)


def _names_template(file: Path) -> bool:
    try:
        if file.stat().st_size > MAX_CONFIG_BYTES:
            return True
        config = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return True  # what is wrong with it shows when it is loaded
    return not isinstance(config, dict) or bool(config.get("chat_template"))
