"""What a field of a request is called on the command line, where options are typed, not bodies."""

import re
from collections.abc import Collection, Iterator
from typing import Any

import typer
from pydantic import ValidationError

from fimlora_client.errors import ValidationFailed
from fimlora_contract.field_errors import message_of

# By the longest way to a field that is named here; all others are called as their last part is.
NAMES = {
    "base_model": "MODEL",
    "dataset": "DATASET",
    "dataset.columns": "--column",
    "dataset.split": "--split",
    "retain.columns": "--column",
    "eval_dataset.columns": "--column",
    "deadline_s": "--deadline",
    "metadata": "--label",
    "plans": "--plan",
    "n_batches": "--first-batches",
    "r_min": "--floors",
    "calibration.n_batches": "--batches",
    "allocation.n_layers": "--layers",
    "allocation.groups": "--group",
}
# Parts of a body that no option names; --adapter is another thing.
SECTIONS = {"adapter", "allocation", "calibration"}
STEP = re.compile(r"[^.\[\]]+|\[\d+\]")


def in_options(error: ValidationFailed, options: Collection[str]) -> str:
    """What is wrong with a request, by the options of the command that made it.

    Args:
        error: The refusal, of the service or of this side.
        options: Options that the command has; what none of them says keeps its field's name.
    """
    lines = [_line(dict(found), options) for found in error.args[0].errors]
    return "; ".join(dict.fromkeys(lines)) or str(error)


def options_of(command: Any) -> set[str]:
    """Options and arguments of a command, or of all in a group of them."""
    own = {name for each in getattr(command, "params", ()) for name in _names_of(each)}
    return own.union(*map(options_of, getattr(command, "commands", {}).values()))


def said_of_value(error: typer.BadParameter) -> str:
    """What is wrong with one value, where the validator behind an option's type refused it."""
    if not isinstance(error.__cause__, ValidationError):
        return error.message
    [first, *_] = error.__cause__.errors(include_url=False)
    return message_of({**first, "loc": ("option", *first["loc"])})


def _names_of(parameter: Any) -> Iterator[str]:
    yield from parameter.opts
    if parameter.param_type_name == "argument":
        yield from (parameter.metavar or "").split("|")


def _line(found: dict[str, Any], options: Collection[str]) -> str:
    field = re.sub(r"^(body|path|query)\b\.?", "", str(found.get("field", "")))
    message = str(found.get("message", "")).removeprefix("Value error, ")
    if field in SECTIONS:
        return message
    named = _named(STEP.findall(field), options) or field
    return f"{named}: {message}" if named else message


def _named(steps: list[str], options: Collection[str]) -> str | None:
    """The option that says a field, then what of it is meant."""
    for length in range(len(steps), 0, -1):
        usual = f"--{steps[length - 1].replace('_', '-')}"
        for name in (NAMES.get(".".join(steps[:length]), usual), usual):
            if name in options:
                return " ".join([name, *map(_within, steps[length:])])
    return None


def _within(step: str) -> str:
    """A part of what an option says: an entry of a list counts from one."""
    return f"entry {int(step[1:-1]) + 1}" if step.startswith("[") else step
