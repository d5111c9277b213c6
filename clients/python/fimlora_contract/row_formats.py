"""What the rows of a dataset were recognised as, in the words that people know them by."""

from collections.abc import Mapping


def row_format(fields: Mapping[str, str | None]) -> str:
    """`Alpaca: instruction, input, output`, by the columns that are read.

    Args:
        fields: Names of columns by role; a role that is not used is ``None`` or absent.
    """
    used = [name for name in fields.values() if name]
    roles = {role for role, name in fields.items() if name}
    shown = [f" with {role}" for role in ("images", "audio") if role in roles]
    return f"{_kind(roles, used)}{''.join(shown)}: {', '.join(used)}"


def _kind(roles: set[str], used: list[str]) -> str:
    if "messages" in roles:
        return "ShareGPT" if "conversations" in used else "chat messages"
    if "instruction" in roles:
        return "Alpaca" if "output" in used else "instructions"
    if "prompt" in roles:
        return "prompts and completions"
    text = "pairs of texts" if "text_pair" in roles else "texts"
    return f"{text} with a label" if "label" in roles else text
