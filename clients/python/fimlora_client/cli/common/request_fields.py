"""What was typed after options, as the fields of a request; the contract checks the rest."""

from typing import Any

import typer

from fimlora_client.cli.common.console import say
from fimlora_contract.budgets import SPELLINGS, budget_words, read_budget


def given(**options: Any) -> dict[str, Any]:
    """Options that were given; the contract has the defaults of all others."""
    return {name: value for name, value in options.items() if value is not None}


def scaling_of(scale: float | None, alpha: float | None, rslora: bool) -> dict[str, Any]:
    """How alphas follow from ranks, as it was given.

    Raises:
        typer.BadParameter: Both were given, also where the scale is the one by default.
    """
    if scale is not None and alpha is not None:
        raise typer.BadParameter(
            f"--scale {scale:g} and --alpha {alpha:g}: give one of both; with --alpha, scales "
            "follow from ranks"
        )
    return given(scale=scale, alpha=alpha, rslora=rslora or None)


def batches_of(batches: str | None) -> int | str | None:
    """A number of batches, or ``auto``."""
    return _number_or_auto("--batches", batches)


def shards_of(shards: str | None) -> int | str | None:
    """A number of shards, or ``auto``."""
    return _number_or_auto("--shards", shards)


def _number_or_auto(name: str, text: str | None) -> int | str | None:
    if text is None or text == "auto":
        return text
    if not text.isdecimal():
        raise typer.BadParameter(f"{name} {text}: give a whole number, or auto")
    return int(text)


def budget_of(
    budget: str | None, parameters: str | None, fraction: str | None, n_bytes: str | None
) -> dict[str, Any]:
    """The budget that was asked for, by whichever option."""
    options = {
        "--budget": ("", budget),
        "--budget-parameters": ("parameters:", parameters),
        "--budget-fraction": ("fraction:", fraction),
        "--budget-bytes": ("bytes:", n_bytes),
    }
    named = {name: found for name, found in options.items() if found[1] is not None}
    if not named:
        raise typer.BadParameter(f"how much may it spend? Give --budget {SPELLINGS}.")
    if len(named) > 1:
        raise typer.BadParameter(f"give exactly one of {' and '.join(named)}")
    [(name, (unit, text))] = named.items()
    return read_amount(name, f"{unit}{text}", given=str(text))


def read_amount(option: str, text: str, *, given: str) -> dict[str, Any]:
    """A budget in one word, as an option has it."""
    try:
        found = read_budget(text)
    except ValueError as error:
        raise typer.BadParameter(f"{option} {given!r} {error}") from None
    if not given.isdecimal():
        say(("  budget  ", "dim"), budget_words(found))  # which unit was understood
    return found
