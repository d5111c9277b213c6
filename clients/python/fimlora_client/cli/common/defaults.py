"""Defaults of `fimlora calibrate` from configuration files, as click takes them."""

from collections.abc import Iterable
from typing import Any

from fimlora_client.config_files import unknown_key
from fimlora_client.errors import InvalidSettings
from fimlora_client.settings import read_defaults

# What is said of one call alone.
OF_A_CALL = frozenset({"output", "pin", "estimate", "as_json", "force", "wait"})


def checked_defaults(parameters: Iterable[Any]) -> dict[str, Any]:
    """Values by option; those of one call alone, and what is no option, are refused.

    Raises:
        InvalidSettings: A file names something else.
    """
    options = [p for p in parameters if p.param_type_name == "option" and p.name != "help"]
    known = sorted({p.name for p in options if not p.hidden} - OF_A_CALL)
    repeatable = {p.name for p in options if p.multiple}
    defaults = read_defaults()
    for name, default in defaults.items():
        if name not in known:
            raise InvalidSettings(f"{default.path}: calibrate.{unknown_key(name, known)}")
        if isinstance(default.value, list) != (name in repeatable):
            wanted = "a list" if name in repeatable else "one value"
            raise InvalidSettings(f"{default.path}: calibrate.{name} is {wanted}")
    return {name: default.value for name, default in defaults.items()}
