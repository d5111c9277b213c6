"""What adapters call a registered base model: never the name that it is registered under.

That name means nothing outside this service, and on the hub it may be somebody else's model.
"""

import os
from pathlib import Path

from fimlora_contract.models import LONGEST_NAME, hub_id_of, is_base_model_name, name_file


def base_model_name(models: Path, name: str) -> str | None:
    """The hub id or path that was given with a model, or the hub id that its folder tells.

    Args:
        models: Where each registered model has a folder.
        name: What it is registered under.
    """
    try:
        with name_file(models, name).open(encoding="utf-8") as file:
            given = file.read(LONGEST_NAME + 2).rstrip("\n")
    except (OSError, UnicodeDecodeError):
        given = ""
    if is_base_model_name(given):
        return given
    return hub_id_of(Path(os.path.realpath(models / name)))  # a loop of links is no error
